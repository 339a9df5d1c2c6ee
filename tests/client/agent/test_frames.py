"""Every decoder of network bytes: round trips, refusals, and whatever hypothesis thinks of."""

import json
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.agent import agent_pb2 as pb
from client.agent import orders
from client.agent.agent import read_options
from client.agent.frames import ARRAYS, CHUNK, read_parts, write_parts
from umbel.config import RunConfig
from umbel.errors import ConfigError, UmbelError, WireError
from umbel.wire import EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

RUN = pb.Run(id="1", options="{}")
VECTORS = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False))


def head(*arrays, **body):
    return pb.Part(head=pb.Head(arrays=[pb.ArrayHead(**a) for a in arrays], **body))


@given(
    adapter=VECTORS,
    extras=st.dictionaries(st.text("abc/.", min_size=1, max_size=9), VECTORS, max_size=3),
    round_number=st.integers(1, 1000),
    secagg=st.none() | st.binary(min_size=1, max_size=50),
    amount=st.integers(0, 9),
    pass_number=st.integers(1, 2),
)
def test_a_train_order_comes_back_as_it_went(adapter, extras, round_number, secagg, amount, pass_number):
    order = TrainOrder(round_number, "s", adapter, secagg, False, amount, extras, pass_number)
    back = orders.read_train_order(*read_parts(orders.train_order_parts(RUN, order)))
    np.testing.assert_array_equal(back.bound, order.bound)
    assert back.extras.keys() == extras.keys()
    facts = ("round", "spec_hash", "secagg", "pooled", "amount", "pass_number")
    assert [getattr(back, name) for name in facts] == [getattr(order, name) for name in facts]


@given(VECTORS | hnp.arrays(np.uint8, st.integers(0, 40)), st.dictionaries(st.text(max_size=5), st.floats(-9, 9)))
def test_replies_steps_and_metrics_come_back(update, metrics):
    reply = orders.read_train_answer(*read_parts(orders.train_reply_parts(TrainReply("s", update, metrics))))
    np.testing.assert_array_equal(reply.update, update)
    assert reply.update.dtype == update.dtype
    assert reply.metrics == metrics
    order = EvaluateOrder(3, "s", np.asarray(update, np.float32))
    back = orders.read_evaluate_order(*read_parts(orders.evaluate_order_parts(RUN, order)))
    np.testing.assert_array_equal(back.adapter, order.adapter)
    step = SecAggStep(2, update.tobytes())
    said, arrays = read_parts(orders.secagg_parts(step, run=RUN, stage=MessageType.SECAGG_MASK))
    assert orders.read_secagg(said, arrays) == step
    assert orders.read_stage(said) is MessageType.SECAGG_MASK
    assert orders.read_metrics(read_parts(orders.metrics_parts(metrics))[0]) == metrics


def test_a_vector_of_many_chunks_comes_back(monkeypatch):
    vector = np.random.default_rng(0).normal(size=CHUNK).astype(np.float32)  # four chunks
    parts = list(orders.train_order_parts(RUN, TrainOrder(1, "s", vector)))
    assert len(parts) == 5
    assert max(part.ByteSize() for part in parts) < CHUNK + 64
    back = orders.read_train_order(*read_parts(parts))
    np.testing.assert_array_equal(back.adapter, vector)


FLOATS = {"name": "adapter", "dtype": "float32", "shape": [2]}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "does not begin with its head"),
        ([pb.Part(chunk=b"x")], "does not begin with its head"),
        ([pb.Part()], "does not begin with its head"),
        ([head(FLOATS)], "ends after 0 of 8"),
        ([head(FLOATS), pb.Part(chunk=b"1234")], "ends after 4 of 8"),
        ([head(FLOATS), pb.Part(chunk=b"123456789")], "more than the 8 bytes"),
        ([head(FLOATS), pb.Part(chunk=b"")], "no chunk of 1"),
        ([head(FLOATS), head(FLOATS)], "no chunk of 1"),
        ([head(FLOATS), pb.Part(chunk=b"x" * (CHUNK + 1))], "no chunk of 1"),
        ([head(FLOATS, FLOATS)], "twice the same"),
        ([head({**FLOATS, "name": ""})], "without a name"),
        ([head({**FLOATS, "name": "x" * 300})], "without a name"),
        ([head({**FLOATS, "dtype": "object"})], "'object'"),
        ([head({**FLOATS, "dtype": "float64"})], "'float64'"),
        ([head({**FLOATS, "shape": [1] * 9})], "9 dimensions"),
        ([head({**FLOATS, "shape": [2**40, 2**40]})], "at most 4096 are taken"),
        ([head({**FLOATS, "shape": [2**63, 2**63, 2**63]})], "at most 4096 are taken"),
        ([head({**FLOATS, "shape": [0, 2**40]})], "at most 4096 are taken"),
        ([head(*({**FLOATS, "name": str(n)} for n in range(ARRAYS + 1)))], "4097 arrays"),
    ],
)
def test_what_was_not_declared_is_refused(parts, said):
    with pytest.raises(WireError, match=said):
        read_parts(parts, 4096)


def test_two_gigabytes_are_refused_before_a_byte_is_kept():
    def endless():
        yield head({**FLOATS, "shape": [1 << 29]})
        raise AssertionError("more was asked for")

    tracemalloc.start()
    with pytest.raises(WireError, match="declares 2147483648 bytes and at most 268435456"):
        read_parts(endless())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_declared_size_sets_no_memory_aside():
    def silent():
        yield head({**FLOATS, "shape": [60 << 20]})  # 240 MB declared, one chunk sent
        yield pb.Part(chunk=bytes(CHUNK))

    tracemalloc.start()
    with pytest.raises(WireError, match="ends after"):
        read_parts(silent())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * CHUNK


@pytest.mark.parametrize(
    ("read", "made"),
    [
        (orders.read_train_order, head(FLOATS, evaluate_order=pb.EvaluateOrder(round=1))),
        (orders.read_train_order, head({**FLOATS, "name": "other"}, train_order=pb.TrainOrder(round=1, pass_number=1))),
        (orders.read_train_order, head(train_order=pb.TrainOrder(round=1, pass_number=1))),
        (orders.read_train_order, head(FLOATS, train_order=pb.TrainOrder(round=0, pass_number=1))),
        (orders.read_train_order, head(FLOATS, train_order=pb.TrainOrder(round=1, pass_number=0))),
        (orders.read_train_order, head(FLOATS, train_order=pb.TrainOrder(round=1, pass_number=99))),
        (orders.read_train_order, head(FLOATS, train_order=pb.TrainOrder(round=1, pass_number=1, amount=-1))),
        (orders.read_train_order, head({**FLOATS, "shape": [1, 2]}, train_order=pb.TrainOrder(round=1, pass_number=1))),
        (orders.read_secagg, head(FLOATS, secagg=pb.SecAggStep(round=1))),
        (orders.read_secagg, head({**FLOATS, "name": "payload"}, secagg=pb.SecAggStep(round=1))),
        (orders.read_train_answer, head(FLOATS, train_reply=pb.TrainReply())),
        (orders.read_train_answer, head()),
    ],
)
def test_a_message_of_another_shape_is_refused(read, made):
    parts = [made, *([pb.Part(chunk=bytes(8))] if made.head.arrays else [])]
    with pytest.raises(WireError, match=r"same version|rounds count"):
        read(*read_parts(parts))


def test_a_stage_that_there_is_not_is_refused():
    with pytest.raises(WireError, match="'train'"):
        orders.read_stage(pb.Head(secagg=pb.SecAggStep(stage="train")))


def test_metrics_must_be_finite():
    with pytest.raises(WireError, match="finite"):
        orders.read_metrics(pb.Head(metrics=pb.Metrics(values={"x": float("nan")})))


def test_arrays_that_are_no_floats_do_not_leave():
    with pytest.raises(WireError, match="float64"):
        list(write_parts(pb.Head(), {"x": np.zeros(1)}))


READERS = (
    orders.read_train_order,
    orders.read_evaluate_order,
    orders.read_secagg,
    orders.read_train_answer,
    lambda said, _: orders.read_stage(said),
    lambda said, _: orders.read_metrics(said),
)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from(READERS))
def test_any_bytes_are_read_or_refused(data, read):
    """What gRPC hands over: each message parsed, or dropped where it is no message."""
    parts = []
    for raw in data:
        try:
            parts.append(pb.Part.FromString(raw))
        except DecodeError:
            return
    with suppress(UmbelError):
        read(*read_parts(parts, 4096))


ARRAY_HEADS = st.builds(
    dict,
    name=st.sampled_from(["adapter", "payload", "update", "extra/x", "", "x"]),
    dtype=st.sampled_from(["float32", "uint8", "float64", "O", ""]),
    shape=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=9),
)
BODIES = st.one_of(
    st.builds(lambda r, a, p: {"train_order": pb.TrainOrder(round=r, amount=a, pass_number=p)},
              st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1)),
    st.builds(lambda r, s: {"secagg": pb.SecAggStep(round=r, stage=s)}, st.integers(0, 2**32 - 1), st.text(max_size=9)),
    st.builds(lambda m: {"metrics": pb.Metrics(values=m)}, st.dictionaries(st.text(max_size=3), st.floats())),
    st.just({}),
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(ARRAY_HEADS, max_size=4), BODIES, st.lists(st.binary(max_size=40), max_size=4), st.sampled_from(READERS)
)
def test_any_message_is_read_or_refused(arrays, body, chunks, read):
    with suppress(UmbelError):
        read(*read_parts([head(*arrays, **body), *(pb.Part(chunk=chunk) for chunk in chunks)], 4096))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["lora.rank", "train.amount", "run.id", "model.name", "privacy.epsilon", "lora", "."])


@settings(max_examples=300)
@given(st.text(max_size=40) | JSON.map(json.dumps) | st.dictionaries(KEYS, JSON, max_size=3).map(json.dumps))
def test_any_options_are_read_or_refused(text):
    with suppress(UmbelError):
        assert isinstance(read_options(text), RunConfig)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{", '{"a": NaN}', '{"a": null}', '{"a": [1]}', "\ud800"])
def test_options_that_are_no_object_of_plain_values(text):
    with pytest.raises(ConfigError):
        read_options(text)
