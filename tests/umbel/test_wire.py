import io
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from umbel import wire
from umbel.errors import WireError


def test_orders_and_replies_round_trip():
    order = wire.TrainOrder(3, "h", np.arange(5, dtype=np.float32), secagg=b"p", pooled=True, amount=4)
    again = wire.unpack_train_order(wire.pack_train_order(order))
    np.testing.assert_array_equal(again.adapter, order.adapter)
    assert (again.round, again.spec_hash, again.secagg, again.pooled, again.amount) == (3, "h", b"p", True, 4)
    reply = wire.unpack_train_reply(wire.pack_train_reply(wire.TrainReply("h", order.adapter, {"loss": 0.5})))
    assert reply.metrics == {"loss": 0.5}
    np.testing.assert_array_equal(reply.update, order.adapter)
    description = wire.Description("a", "b", "c", 8, "1")
    assert wire.unpack_description(wire.pack_description(description)) == description
    step = wire.SecAggStep(2, bytes(range(256)))
    assert wire.unpack_secagg(wire.pack_secagg(step)) == step
    assert wire.unpack_metrics(wire.pack_metrics({"x": 1.0})) == {"x": 1.0}
    evaluate = wire.unpack_evaluate_order(wire.pack_evaluate_order(wire.EvaluateOrder(1, "h", order.adapter)))
    assert evaluate.round == 1


def test_refusals_are_recognised():
    refusal = wire.Refusal(80, "no")
    assert wire.unpack_refusal(wire.pack_refusal(refusal)) == refusal
    assert wire.unpack_refusal(RecordDict()) is None
    assert wire.unpack_refusal(wire.pack_metrics({})) is None


def _with(array):
    """A reply whose vector is not in the head but an array, as that of a long one is."""
    records = RecordDict({"umbel": ConfigRecord({"spec_hash": "h"})})
    records["umbel.vector"] = ArrayRecord(array_dict={"v": array})
    return records


def _inlined(**head):
    return RecordDict({"umbel": ConfigRecord({"spec_hash": "h", **head})})


@pytest.mark.parametrize("size", [0, 1, wire.INLINE // 4, wire.INLINE // 4 + 1])
def test_a_short_vector_is_one_object_and_a_long_one_an_array(size):
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    records = wire.pack_train_reply(wire.TrainReply("h", vector))
    assert bool(records.array_records) == (vector.nbytes > wire.INLINE)
    assert wire.payload_bytes(records) == vector.nbytes
    again = wire.unpack_train_reply(records).update
    np.testing.assert_array_equal(again, vector)
    assert again.flags.writeable


@pytest.mark.parametrize(
    "records",
    [
        _inlined(vector=bytes(12), dtype="float64"),
        _inlined(vector=bytes(12), dtype="object"),
        _inlined(vector=bytes(12)),
        _inlined(vector="twelve bytes", dtype="float32"),
        _inlined(vector=bytes(11), dtype="float32"),
        RecordDict(),
        RecordDict({"umbel": ConfigRecord({})}),
        RecordDict({"umbel": ConfigRecord({"spec_hash": 3})}),
        RecordDict({"umbel": ConfigRecord({"spec_hash": "h"})}),
        _with(Array(np.zeros(3))),
        _with(Array(np.zeros((3, 1), np.float32))),
        _with(Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"\x93NUMPY")),
        _with(Array(dtype="float32", shape=(3,), stype="pickle", data=b"cos\nsystem\n(S'true'\ntR.")),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(records):
    with pytest.raises(WireError):
        wire.unpack_train_reply(records)


def test_an_array_whose_bytes_lie_about_their_shape_is_refused():
    """The header says three float32 values; the bytes hold an object array that would need pickle."""
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(WireError):
        wire.unpack_train_reply(
            _with(Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=stream.getvalue()))
        )
    stream = io.BytesIO()
    np.save(stream, np.zeros(9, np.float64))
    with pytest.raises(WireError):
        wire.unpack_train_reply(
            _with(Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=stream.getvalue()))
        )


def test_passes_and_extras_round_trip_and_bind_a_secure_round_to_all_that_was_sent():
    vector = np.arange(5, dtype=np.float32)
    extras = {"b": np.ones((2, 3), np.float32), "a": np.full(2, 7, np.float32)}
    order = wire.TrainOrder(3, "h", np.zeros(0, np.float32), extras=extras, pass_number=2)
    again = wire.unpack_train_order(wire.pack_train_order(order))
    assert again.pass_number == 2
    assert again.adapter.size == 0
    assert {name: array.tolist() for name, array in again.extras.items()} == {k: v.tolist() for k, v in extras.items()}
    np.testing.assert_array_equal(again.bound, order.bound)
    plain = wire.TrainOrder(3, "h", vector)
    assert plain.bound is vector
    others = [
        wire.TrainOrder(3, "h", vector, extras=extras),
        wire.TrainOrder(3, "h", vector, extras={**extras, "a": extras["a"] + 1}),
        wire.TrainOrder(3, "h", vector, extras=extras, pass_number=2),
        plain,
    ]
    assert len({other.bound.tobytes() for other in others}) == len(others)
    evaluate = wire.EvaluateOrder(1, "h", vector, extras)
    found = wire.unpack_evaluate_order(wire.pack_evaluate_order(evaluate))
    assert set(found.extras) == {"a", "b"}
    np.testing.assert_array_equal(found.adapter, vector)


@pytest.mark.parametrize("shape", [(1 << 28,), (1 << 60,), (0, 1 << 62, 1 << 62), (-1,), (4,), (2, 2)])
def test_a_header_that_promises_more_or_else_sets_nothing_aside(shape):
    """numpy's own reader takes a gigabyte for the first of these before it looks for the values."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for said in (shape, (3,)):
        data = stream.getvalue() + bytes(12)
        records = _with(Array(dtype="float32", shape=said, stype="numpy.ndarray", data=data))
        tracemalloc.start()
        with pytest.raises(WireError):
            wire.unpack_train_reply(records)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 16
        assert wire.payload_bytes(records) <= len(data)


def test_arrays_come_back_writable_whatever_their_shape():
    extras = {"a": np.ones((2, 3), np.float32), "b": np.zeros((0, 4), np.float32), "c": np.float32([7.0])}
    order = wire.TrainOrder(1, "h", np.zeros(0, np.float32), extras=extras)
    found = wire.unpack_train_order(wire.pack_train_order(order)).extras
    for name, array in extras.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"run": 1, "cohort": 2, "attempt": 3}',
        b'{"run": "r", "cohort": 3, "attempt": 99999999999999999999}',
        b'{"run": "r", "cohort": 3, "attempt": -1}',
        b'{"run": "\\ud800", "cohort": 3, "attempt": 1}',
        b"{}",
        b"\xff",
    ],
)
def test_a_secure_order_that_is_none_is_refused(data):
    with pytest.raises(WireError, match="secure-aggregation order"):
        wire.read_secure_order(data)
