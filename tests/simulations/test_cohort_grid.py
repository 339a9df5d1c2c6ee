"""CohortGrid over the in-memory grid: many devices a message, the same result as one by one."""

import numpy as np
import pytest
from flwr.app import Message

from coordinator.collect import Broadcast, PlainCollector
from coordinator.courier import Courier
from coordinator.population import Participant
from simulations.clients import stock
from simulations.cohort_grid import CohortGrid
from simulations.memory_grid import MemoryGrid
from simulations.packed import COHORT, answer_packed
from tests.federated import options, run_in_memory
from tests.simulations.noop import SPEC, answer
from tests.simulations.runs import adapter
from umbel import wire
from umbel.wire import MessageType, TrainOrder, pack_train_order, unpack_train_reply

NODES = 11


def carrier(client):
    """A ClientApp that understands packed messages only."""

    def app(message, context):
        assert message.metadata.message_type == COHORT
        return Message(answer_packed(message.content, context, client), reply_to=message)

    return app


def packed(client=answer, carriers=3, config=None, fault=None, lanes=1, devices=NODES):
    inner = MemoryGrid(carrier(client), carriers, config, fault=fault)
    return CohortGrid(inner, devices, lanes=lanes, carriers=carriers), inner


class Unfolded:
    def __init__(self, grid):
        self.push_messages, self.pull_messages = grid.push_messages, grid.pull_messages


def collect(grid, **options):
    vector = np.linspace(-1, 1, SPEC.size).astype(np.float32)
    cohort = [Participant(node, f"{node - 1:06d}", 4) for node in range(1, NODES + 1)]
    return PlainCollector(Courier(grid, poll=0.0), timeout=5.0, **options).collect(
        cohort, Broadcast(1, SPEC, lambda _rank: (SPEC, vector), SPEC)
    )


@pytest.mark.parametrize("by_examples", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_sums_and_refusals_equal_those_of_single_messages(by_examples, folded):
    config = {"liar": 3, "stranger": 4, "broken": 5}
    alone = collect(MemoryGrid(answer, NODES, config), by_examples=by_examples)
    grid, inner = packed(config=config)
    found = collect(grid if folded else Unfolded(grid), by_examples=by_examples)
    assert np.array_equal(found.mean, alone.mean)
    assert found.survivors == alone.survivors
    assert len(found.survivors) == NODES - 3
    assert found.rejected.keys() == alone.rejected.keys()
    assert found.metrics == pytest.approx(alone.metrics)
    assert (found.bytes_up, found.bytes_down, found.missing) == (alone.bytes_up, alone.bytes_down, 0)
    assert len(inner.sent) < NODES


def test_devices_remember_from_round_to_round():
    grid, _ = packed()
    for number in (1, 2, 3):
        records = pack_train_order(TrainOrder(number, SPEC.hash, SPEC.zeros()))
        orders = [(node, records.copy) for node in range(1, NODES + 1)]
        replies = list(Courier(grid, poll=0.0).ask(MessageType.TRAIN, orders, timeout=5.0, group=str(number)))
        assert len(replies) == NODES
    again = list(grid.send_and_receive([Message(records, 4, "train", group_id="4")], timeout=5.0))
    assert unpack_train_reply(again[0].content).metrics["asked"] == 4


def test_a_carrier_that_dies_takes_its_devices_and_no_others():
    grid, _ = packed(fault=lambda node, message: "crash" if node == 1 else None)
    found = collect(grid)
    assert 0 < len(found.survivors) < NODES
    assert found.rejections == NODES - len(found.survivors)
    alone = collect(
        MemoryGrid(answer, NODES, fault=lambda node, m: None if f"{node:06d}" in found.survivors else "crash")
    )
    assert np.array_equal(found.mean, alone.mean)


def test_what_a_lost_carrier_held_is_missing():
    grid, _ = packed(fault=lambda node, message: "lost" if node == 1 else None)
    vector = SPEC.zeros()
    cohort = [Participant(node, f"{node - 1:06d}", 4) for node in range(1, NODES + 1)]
    collector = PlainCollector(Courier(grid, poll=0.0), timeout=0.5)
    found = collector.collect(cohort, Broadcast(1, SPEC, lambda _rank: (SPEC, vector), SPEC))
    assert found.missing == NODES - len(found.survivors) > 0
    assert found.rejections == 0


def test_groups_of_lanes_are_never_cut():
    seen = []

    class Lanes:
        def __call__(self, message, context):
            return answer(message, context)

        def many(self, messages, contexts, *, lanes):
            seen.append([context.node_id for context in contexts])
            return [answer(message, context) for message, context in zip(messages, contexts, strict=True)]

        def warm(self, run_config):
            pass

    grid, _ = packed(Lanes(), carriers=2, lanes=4)
    collect(grid)
    assert seen == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_a_whole_run_ends_in_the_same_bits(tiny_root, tmp_path, secure):
    changes = {"secagg.enabled": secure, "run.directory": str(tmp_path), "federation.clients": 5}
    alone = adapter(run_in_memory(options(tiny_root) | changes | {"run.id": "alone"}))
    flat = options(tiny_root) | changes | {"run.id": "packed"}

    from coordinator.run_folder import RunFolder
    from coordinator.server_app import run
    from umbel.config import RunConfig

    config = RunConfig.from_flat(flat)
    inner = MemoryGrid(carrier(stock), 2, config.to_flat())
    with RunFolder.open(config, 1) as folder:
        run(CohortGrid(inner, 5, carriers=2), config, folder)
        together = adapter(folder.path)
    assert {kind for _, kind in inner.sent} == {COHORT}
    if secure:  # masks and stochastic rounding draw anew
        assert all(np.allclose(alone[name], together[name], atol=1e-2) for name in alone)
    else:
        assert all(np.array_equal(alone[name], together[name]) for name in alone)


def test_a_real_site_refuses_packed_orders(tiny_root):
    from simulations.client_app import app
    from simulations.packed import pack_orders

    flat = options(tiny_root)
    grid = MemoryGrid(app, 1, flat)
    (reply,) = grid.send_and_receive([Message(pack_orders([], {}, devices=1, lanes=1), 1, COHORT)])
    assert "A packed order was sent to a real site" in wire.unpack_refusal(reply.content).message


def test_only_flowers_simulation_is_packed(tiny_root):
    from simulations.server_app import packing
    from umbel.config import RunConfig

    grid = MemoryGrid(answer, 4)
    assert packing(grid, RunConfig()) is grid
