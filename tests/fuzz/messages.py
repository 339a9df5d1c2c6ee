"""Orders and replies: Flower records at both ends, and the parts between a courier and its agent."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Records
from google.protobuf.message import DecodeError

from client.agent import agent_pb2 as pb
from client.agent import orders
from client.agent.agent import read_options
from client.agent.frames import read_parts
from coordinator.collect.base import Broadcast
from coordinator.collect.uploads import read_upload
from coordinator.courier import read_reply
from strategies.compression.quantize import StochasticQuantizer
from tests.fuzz.target import Target
from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape
from umbel.config import RunConfig
from umbel.errors import UmbelError
from umbel.side import read_side
from umbel.wire import EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

LIMIT = 4096
_RUN = pb.Run(id="1", options='{"federation.rounds": 3}')
_VECTOR = np.arange(8, dtype=np.float32)
_SPEC = AdapterSpec.from_shapes({"q.lora_A.weight": (2, 2), "q.lora_B.weight": (2, 2)}, LoraShape(2, 4.0))
_SIDE = {"side.q.A": np.ones((1, 2), np.float32), "side.q.B": np.ones((2, 1), np.float32)}
_ORDER = TrainOrder(3, _SPEC.hash, _VECTOR, secagg=wire.secure_order("r", 3, 0), extras=_SIDE)
_EVALUATE = EvaluateOrder(1, _SPEC.hash, _VECTOR, _SIDE)
_STEP = SecAggStep(2, bytes(range(64)))


def targets() -> Iterator[Target]:
    """Decoders of both ends, the quantizer's among them."""
    records = (
        wire.pack_train_order(_ORDER),
        wire.pack_train_reply(TrainReply(_SPEC.hash, _VECTOR, {"examples": 4.0, "loss": 0.5})),
        wire.pack_evaluate_order(_EVALUATE),
        wire.pack_secagg(_STEP),
        wire.pack_metrics({"correct": 3.0}),
        wire.pack_refusal(wire.Refusal(80, "no")),
        wire.pack_description(wire.Description("a", "b", "c", 8, "1")),
    )
    yield Target("flower-records", _unpacked, (*map(_sent, records), *map(_as_long, records[:3])))
    quantizer = StochasticQuantizer(bits=5, block=16)
    coded = np.frombuffer(quantizer.encode(_VECTOR, 0), np.uint8)
    replies = [TrainReply(_SPEC.hash, update, {"examples": 4.0}) for update in (_VECTOR, coded)]
    uploads = [wire.pack_train_reply(reply) for reply in replies]
    yield Target("plain-upload", _uploaded, (*map(_sent, uploads), *map(_as_long, uploads)))
    wide = np.linspace(-1, 1, 100, dtype=np.float32)
    encoded = tuple(StochasticQuantizer(bits, 16).encode(wide, 0) for bits in (2, 5, 8, 16))
    yield Target("quantized-vector", lambda data: StochasticQuantizer.decode(data, wide.size), encoded)
    yield Target(
        "error-report", _reported, (b"<class 'a.b.C(d)'>:<'gone'>", b'x\n  File "a", line 3\n occurred. Message: y')
    )
    said = (
        orders.train_order_parts(_RUN, _ORDER),
        orders.evaluate_order_parts(_RUN, _EVALUATE),
        orders.secagg_parts(_STEP, run=_RUN, stage=MessageType.SECAGG_MASK),
        orders.train_reply_parts(TrainReply("s", _VECTOR, {"loss": 1.0})),
        orders.metrics_parts({"correct": 3.0}),
    )
    yield Target("agent-parts", _heard, tuple(map(_framed, said)))
    options = json.dumps(RunConfig().to_flat())
    yield Target("run-options", lambda data: read_options.__wrapped__(_text(data)), (options.encode(),))
    yield Target("adapter-spec", lambda data: AdapterSpec.from_json(_text(data)), (_SPEC.to_json().encode(),))


def _sent(records: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(records).SerializeToString(deterministic=True))


def _as_long(records: RecordDict) -> bytes:
    """The same message with its vector as an array, as one that is too long for the head has it."""
    head = dict(records.config_records["umbel"])
    vector = np.frombuffer(head.pop("vector"), head.pop("dtype"))  # type: ignore[arg-type, call-overload]
    arrays = {"umbel.vector": ArrayRecord(array_dict={"v": Array(vector)}), **records.array_records}
    return _sent(RecordDict({"umbel": ConfigRecord(head), **arrays, **records.metric_records}))


def _records(data: bytes) -> RecordDict | None:
    """What Flower makes of the bytes; None where Flower itself refuses them, which ends before our code begins."""
    try:
        return recorddict_from_proto(Records.FromString(data))
    except (DecodeError, TypeError, ValueError, KeyError, AttributeError):
        return None


def _unpacked(data: bytes) -> None:
    records = _records(data)
    if records is None:
        return
    wire.payload_bytes(records)
    assert wire.payload_bytes(records) <= len(data)
    read_reply(1, SimpleNamespace(has_error=lambda: False, content=records))
    _all(
        lambda: read_side(wire.unpack_train_order(records).extras),
        lambda: wire.unpack_train_order(records).bound,
        lambda: wire.unpack_train_reply(records),
        lambda: wire.unpack_evaluate_order(records),
        lambda: wire.unpack_secagg(records),
        lambda: wire.unpack_metrics(records),
        lambda: wire.unpack_description(records),
    )


def _uploaded(data: bytes) -> None:
    records = _records(data)
    if records is None:
        return
    broadcast = Broadcast(1, _SPEC, lambda _: (_SPEC, _SPEC.zeros()), _SPEC)
    _all(
        *(
            lambda coded=coded, weigh=weigh: read_upload(records, 2, broadcast, by_examples=weigh, quantized=coded)
            for coded in (False, True)
            for weigh in (False, True)
        )
    )


def _reported(data: bytes) -> None:
    """What a node's runtime says of its end comes as a text of the network."""
    error = SimpleNamespace(code=0, reason=_text(data))
    reason = read_reply(1, SimpleNamespace(has_error=lambda: True, error=error)).reason
    assert len(reason) <= 300
    assert "\n" not in reason


def _framed(parts: Iterable[pb.Part]) -> bytes:
    """Messages as gRPC frames them: a length of four bytes before each."""
    raw = [part.SerializeToString(deterministic=True) for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in raw)


def _heard(data: bytes) -> None:
    stream, parts = io.BytesIO(data), []
    while len(size := stream.read(4)) == 4:
        try:
            parts.append(pb.Part.FromString(stream.read(int.from_bytes(size, "big"))))
        except DecodeError:
            return  # gRPC ends such a call before our code begins
    head, arrays = read_parts(parts, LIMIT)
    _all(
        lambda: orders.read_train_order(head, arrays).bound,
        lambda: orders.read_evaluate_order(head, arrays),
        lambda: orders.read_secagg(head, arrays),
        lambda: orders.read_stage(head),
        lambda: orders.read_train_answer(head, arrays),
        lambda: orders.read_metrics(head),
    )


def _text(data: bytes) -> str:
    """As protobuf gives it: UTF-8, or the message had been refused."""
    return data.decode("utf-8", "replace")


def _all(*reads: Any) -> None:
    """Every reader looks at the message; refused is what none of them takes."""
    refusals = []
    for read in reads:
        try:
            read()
        except UmbelError as error:
            refusals.append(error)
    if len(refusals) == len(reads):
        raise refusals[0]
