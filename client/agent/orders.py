"""Orders and replies of the Site seam as heads and arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from client.agent import agent_pb2 as pb
from client.agent.frames import Arrays, write_parts
from umbel.errors import WireError
from umbel.wire import EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

STAGES = (
    MessageType.SECAGG_SHARE,
    MessageType.SECAGG_MASK,
    MessageType.SECAGG_CONFIRM,
    MessageType.SECAGG_UNMASK,
)
_MAX_ROUND = 1 << 31
_MAX_METRICS = 256
_EXTRA = "extra/"
_SAME = "both ends must run the same version of umbel"


def train_order_parts(run: pb.Run, order: TrainOrder) -> Iterator[pb.Part]:
    """A train order on its way to the site."""
    body = pb.TrainOrder(
        round=order.round,
        spec_hash=order.spec_hash,
        secagg=order.secagg or b"",
        pooled=order.pooled,
        amount=order.amount,
        pass_number=order.pass_number,
    )
    return write_parts(pb.Head(run=run, train_order=body), _with_extras(order.adapter, order.extras))


def read_train_order(head: pb.Head, arrays: Arrays) -> TrainOrder:
    """Reads :func:`train_order_parts`. Raises WireError."""
    body = _body(head, "train_order").train_order
    adapter, extras = _adapter(arrays)
    if not 0 <= body.amount < _MAX_ROUND or not 1 <= body.pass_number <= 16:
        raise WireError(f"A train order has amount {body.amount} and pass {body.pass_number}: {_SAME}.")
    return TrainOrder(
        round=_round(body.round, least=0 if body.pooled else 1),
        spec_hash=body.spec_hash,
        adapter=adapter,
        secagg=body.secagg or None,
        pooled=body.pooled,
        amount=body.amount,
        extras=extras,
        pass_number=body.pass_number,
    )


def evaluate_order_parts(run: pb.Run, order: EvaluateOrder) -> Iterator[pb.Part]:
    """An evaluate order on its way to the site."""
    body = pb.EvaluateOrder(round=order.round, spec_hash=order.spec_hash)
    return write_parts(pb.Head(run=run, evaluate_order=body), _with_extras(order.adapter, order.extras))


def read_evaluate_order(head: pb.Head, arrays: Arrays) -> EvaluateOrder:
    """Reads :func:`evaluate_order_parts`. Raises WireError."""
    body = _body(head, "evaluate_order").evaluate_order
    adapter, extras = _adapter(arrays)
    return EvaluateOrder(_round(body.round, least=0), body.spec_hash, adapter, extras)


def secagg_parts(step: SecAggStep, *, run: pb.Run | None = None, stage: MessageType | None = None) -> Iterator[pb.Part]:
    """A protocol message: with run and stage on its way to the site, without them on its way back."""
    body = pb.SecAggStep(round=step.round, stage=stage.value if stage else "")
    payload = np.frombuffer(step.payload, dtype=np.uint8)
    return write_parts(pb.Head(run=run, secagg=body), {"payload": payload})


def read_secagg(head: pb.Head, arrays: Arrays) -> SecAggStep:
    """Reads :func:`secagg_parts`. Raises WireError."""
    body = _body(head, "secagg").secagg
    payload = arrays.get("payload")
    if payload is None or payload.dtype != np.uint8 or payload.ndim != 1 or len(arrays) != 1:
        raise WireError(f"A protocol message carries no payload: {_SAME}.")
    return SecAggStep(_round(body.round), payload.tobytes())


def read_stage(head: pb.Head) -> MessageType:
    """The stage of a protocol message on its way to the site. Raises WireError."""
    said = _body(head, "secagg").secagg.stage
    for stage in STAGES:
        if stage.value == said:
            return stage
    raise WireError(f"A protocol message is of stage {said[:64]!r}, which there is not: {_SAME}.")


def train_reply_parts(reply: TrainReply) -> Iterator[pb.Part]:
    """A plain update on its way back."""
    body = pb.TrainReply(spec_hash=reply.spec_hash, metrics=reply.metrics)
    return write_parts(pb.Head(train_reply=body), {"update": reply.update})


def read_train_answer(head: pb.Head, arrays: Arrays) -> TrainReply | SecAggStep:
    """What answers a train order: an update or a protocol message. Raises WireError."""
    if head.WhichOneof("body") == "secagg":
        return read_secagg(head, arrays)
    body = _body(head, "train_reply").train_reply
    update = arrays.get("update")
    if update is None or update.ndim != 1 or len(arrays) != 1:
        raise WireError(f"A train reply carries no update: {_SAME}.")
    return TrainReply(body.spec_hash, update, _metrics(body.metrics))


def metrics_parts(metrics: Mapping[str, float]) -> Iterator[pb.Part]:
    """Metrics on their way back."""
    return write_parts(pb.Head(metrics=pb.Metrics(values=dict(metrics))), {})


def read_metrics(head: pb.Head) -> dict[str, float]:
    """Reads :func:`metrics_parts`. Raises WireError."""
    return _metrics(_body(head, "metrics").metrics.values)


def _with_extras(adapter: npt.NDArray[np.float32], extras: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    return {"adapter": adapter, **{_EXTRA + name: array for name, array in extras.items()}}


def _adapter(arrays: Arrays) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
    found: dict[str, npt.NDArray[np.float32]] = {}
    for name, array in arrays.items():
        if array.dtype != np.float32 or (name == "adapter" and array.ndim != 1):
            raise WireError(f"Array {name!r} of an order is {array.dtype.name} of {array.ndim} dimensions: {_SAME}.")
        if name != "adapter" and not name.startswith(_EXTRA):
            raise WireError(f"An order carries the array {name!r}, which is not known: {_SAME}.")
        found[name] = np.asarray(array, dtype=np.float32)
    if "adapter" not in found:
        raise WireError(f"An order carries no adapter: {_SAME}.")
    adapter = found.pop("adapter")
    return adapter, {name.removeprefix(_EXTRA): array for name, array in found.items()}


def _body(head: pb.Head, name: str) -> pb.Head:
    if head.WhichOneof("body") != name:
        raise WireError(f"A message is {head.WhichOneof('body') or 'empty'}, expected {name}: {_SAME}.")
    return head


def _round(number: int, least: int = 1) -> int:
    if not least <= number < _MAX_ROUND:
        raise WireError(f"A message is about round {number}: rounds count from {least}.")
    return number


def _metrics(values: Mapping[str, float]) -> dict[str, float]:
    if len(values) > _MAX_METRICS or any(not math.isfinite(value) for value in values.values()):
        raise WireError(f"A message carries metrics that are not finite, or more than {_MAX_METRICS}.")
    return {name: float(value) for name, value in values.items()}
