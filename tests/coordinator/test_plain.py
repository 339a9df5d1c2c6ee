"""The courier and the plain collector, over the in-memory grid."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from coordinator.collect import Broadcast, PlainCollector
from coordinator.courier import Courier
from coordinator.population import Participant, discover
from simulations.memory_grid import MemoryGrid
from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape
from umbel.config import FederationConfig
from umbel.errors import FederationError
from umbel.wire import MessageType

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 3), "m.lora_B.weight": (4, 2)}, LoraShape(2, 4.0))
VECTORS = [np.random.default_rng(i).normal(size=SPEC.size).astype(np.float32) for i in range(8)]


def broadcast(number=1):
    return Broadcast(number, SPEC, lambda rank: (SPEC, SPEC.zeros()), SPEC)


def client(change=None):
    """Node i answers with VECTORS[i]; ``change`` may replace the reply's records."""

    def answer(message, context):
        index = context.node_config["partition-id"]
        if message.metadata.message_type == MessageType.DESCRIBE:
            records = wire.pack_description(wire.Description(f"s{index}", SPEC.hash, "b", 2, "1"))
        else:
            metrics = {"examples": 10.0 * (index + 1), "seen": 4.0, "loss": float(index)}
            records = wire.pack_train_reply(wire.TrainReply(SPEC.hash, VECTORS[index], metrics))
        records = change(index, records) if change else records
        return Message(records, reply_to=message)

    return answer


def collect(answer, nodes=8, fault=None, **options):
    courier = Courier(MemoryGrid(answer, nodes, fault=fault), poll=0.001)
    cohort = [Participant(i + 1, f"s{i}", 2) for i in range(nodes)]
    return PlainCollector(courier, timeout=0.5, **options).collect(cohort, broadcast())


def test_uniform_mean():
    got = collect(client())
    np.testing.assert_allclose(got.mean, np.mean(VECTORS, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)
    assert got.survivors == [f"s{i}" for i in range(8)]
    assert got.metrics["loss"] == pytest.approx(3.5)
    assert got.bytes_up == got.bytes_down == 8 * 4 * SPEC.size


def test_mean_by_examples():
    got = collect(client(), by_examples=True)
    expected = np.average(VECTORS, axis=0, weights=np.arange(1, 9))
    np.testing.assert_allclose(got.mean, expected, rtol=1e-6, atol=1e-9)


def test_kept_uploads():
    got = collect(client(), keep_uploads=True)
    assert got.mean is None
    assert len(got.uploads) == 8
    assert {u.vector.tobytes() for u in got.uploads} == {v.tobytes() for v in VECTORS}


def test_lost_and_crashed_clients_are_counted_and_left_out():
    got = collect(client(), fault=lambda i, m: {0: "lost", 3: "crash"}.get(i))
    keep = [v for i, v in enumerate(VECTORS) if i not in (0, 3)]
    np.testing.assert_allclose(got.mean, np.mean(keep, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)
    assert got.missing == 1
    assert got.rejections == 1


def test_a_reply_delivered_twice_counts_once():
    got = collect(client(), fault=lambda i, m: "twice")
    assert len(got.survivors) == 8
    np.testing.assert_allclose(got.mean, np.mean(VECTORS, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)


def _bad(kind):
    def change(index, records):
        if index != 2:
            return records
        vector = VECTORS[2].copy()
        if kind == "nan":
            vector[1] = np.nan
        if kind == "huge":
            vector[1] = 1e30
        if kind == "short":
            vector = vector[:-1]
        spec_hash = "0" * 64 if kind == "hash" else SPEC.hash
        if kind == "empty":
            return RecordDict()
        if kind == "refusal":
            return wire.pack_refusal(wire.Refusal(80, "not today"))
        made = wire.pack_train_reply(wire.TrainReply(spec_hash, vector, {"examples": 1.0, "seen": 1.0, "loss": 0.0}))
        head = made.config_records["umbel"]
        if kind == "dtype":
            head["dtype"] = "float999"
        if kind == "ragged":
            head["vector"] = head["vector"][:-1]
        if kind == "array":
            del head["vector"]
            made["umbel.vector"] = ArrayRecord(array_dict={"v": Array("float32", (1 << 60,), "numpy.ndarray", b"")})
        return made

    return change


@pytest.mark.parametrize("kind", ["nan", "huge", "short", "hash", "empty", "refusal", "dtype", "ragged", "array"])
def test_broken_replies_are_counted_and_never_averaged(kind):
    got = collect(client(_bad(kind)))
    keep = [v for i, v in enumerate(VECTORS) if i != 2]
    np.testing.assert_allclose(got.mean, np.mean(keep, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)
    assert got.rejections == 1
    assert "s2" not in got.survivors


def test_a_client_without_examples_has_no_weight():
    def change(index, records):
        return wire.pack_train_reply(wire.TrainReply(SPEC.hash, VECTORS[index], {"examples": 0.0 if index else 5.0}))

    got = collect(client(change), by_examples=True)
    assert got.survivors == ["s0"]
    assert got.rejections == 7


def test_discovery_sorts_by_name_and_leaves_out_foreign_adapters():
    def change(index, records):
        spec_hash = "other" if index == 1 else SPEC.hash
        return wire.pack_description(wire.Description(f"s{7 - index}", spec_hash, "b", 2, "1"))

    courier = Courier(MemoryGrid(client(change), 8), poll=0.001)
    found = discover(courier, SPEC, FederationConfig(clients=8))
    assert [p.site for p in found] == [f"s{i}" for i in range(8) if i != 6]
    assert found[0].node == 8


def test_discovery_refuses_two_nodes_of_one_name_and_too_few():
    def change(index, records):
        return wire.pack_description(wire.Description("same", SPEC.hash, "b", 2, "1"))

    courier = Courier(MemoryGrid(client(change), 3), poll=0.001)
    with pytest.raises(FederationError, match="partition-id"):
        discover(courier, SPEC, FederationConfig(clients=3))


def test_memory_holds_few_replies_at_once():
    """Replies are made when pulled: never more than the courier's handful are alive together."""
    import gc
    import weakref

    alive, peak = weakref.WeakSet(), 0

    class Counted(RecordDict):
        __hash__ = object.__hash__

    def answer(message, context):
        nonlocal peak
        records = Counted(wire.pack_train_reply(wire.TrainReply(SPEC.hash, VECTORS[0], {"examples": 1.0})))
        alive.add(records)
        gc.collect()
        peak = max(peak, len(alive))
        return Message(records, reply_to=message)

    courier = Courier(MemoryGrid(answer, 60), poll=0.001)
    cohort = [Participant(i + 1, f"s{i}", 2) for i in range(60)]
    got = PlainCollector(courier, timeout=5).collect(cohort, broadcast())
    assert len(got.survivors) == 60
    assert peak <= 8
