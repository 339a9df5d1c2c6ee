"""What travels between coordinator and sites: orders, replies, and their Flower records.

An order goes down with a message type of :class:`MessageType`; a reply comes back under the same
type. Vectors travel as one float32 (or, masked, uint8) array, so nothing is ever pickled.

Flower stores and moves every part of a message as an object of its own, and each costs the SuperLink a request with
several transactions at either end. A vector of at most :data:`INLINE` bytes therefore lies in the message's head, which
makes two objects of a protocol step instead of five; a longer one is an Array, which Flower sends in chunks.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from umbel.adapter import Vector
from umbel.errors import WireError

_HEAD = "umbel"
_VECTOR = "umbel.vector"
_METRICS = "umbel.metrics"
_EXTRAS = "umbel.extras"
_LAST_ATTEMPT = (1 << 63) - 1
_ITEM = {"float32": 4, "uint8": 1}
INLINE = 1 << 20
"""Most bytes of a vector that travels in the head of its message."""
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '(<f4|\|u1)', 'fortran_order': False, 'shape': (\([0-9, ]*\)), \} *\n", re.S
)
"""The header that numpy writes before such an array (NEP 1, version 1.0)."""


class MessageType(StrEnum):
    """Flower message types, one an action of the ClientApp."""

    DESCRIBE = "query.describe"
    TRAIN = "train"
    EVALUATE = "evaluate"
    SECAGG_SHARE = "query.secagg_share"
    SECAGG_MASK = "query.secagg_mask"
    SECAGG_CONFIRM = "query.secagg_confirm"
    SECAGG_UNMASK = "query.secagg_unmask"


@dataclass(frozen=True, slots=True)
class Description:
    """What a site says of itself before the first round: nothing about its data.

    Attributes:
        site: a name that stays the same over restarts, so that cohorts can be drawn reproducibly.
        spec_hash: of the adapter that this site would train.
        base_hash: of the base model that it holds.
        rank: its LoRA rank.
        version: of umbel.
    """

    site: str
    spec_hash: str
    base_hash: str
    rank: int
    version: str


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """Train one round from ``adapter``.

    Attributes:
        round: 1-based.
        spec_hash: of the adapter's spec; a site with another refuses.
        adapter: the vector that the strategy's download gave.
        secagg: the public parameters of secure aggregation as bytes, or None for a plain reply.
        pooled: train on all partitions at once, for the central comparison (simulation only).
        amount: overrides train.amount when positive.
        extras: what the strategy sends beside the adapter, float32 arrays by name.
        pass_number: 1 asks for training; a later pass for another upload of what was trained in this round already,
            so that ``adapter`` is empty.
    """

    round: int
    spec_hash: str
    adapter: Vector
    secagg: bytes | None = None
    pooled: bool = False
    amount: int = 0
    extras: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    pass_number: int = 1

    @property
    def bound(self) -> Vector:
        """All values that were sent: what a secure round is bound to, so that everybody must have got the same."""
        if not self.extras and self.pass_number == 1:
            return self.adapter
        head = np.array([self.pass_number, self.adapter.size], dtype=np.float32)
        return np.concatenate([head, self.adapter, *(self.extras[name].ravel() for name in sorted(self.extras))])


@dataclass(frozen=True, slots=True)
class TrainReply:
    """A plain update: the strategy's upload, the hash of its layout, and metrics to be summed.

    ``update`` is the float32 vector or, where the run quantizes uploads, the quantizer's bytes as uint8. ``metrics``
    holds ``examples``, ``steps`` and ``loss`` (mean over the examples seen).
    """

    spec_hash: str
    update: Vector | npt.NDArray[np.uint8]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluateOrder:
    """Evaluate ``adapter``, with what the site keeps of its own, on the site's held-out data.

    ``extras`` is what the strategy sends beside the adapter, float32 arrays by name.
    """

    round: int
    spec_hash: str
    adapter: Vector
    extras: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecAggStep:
    """One message of the secure-aggregation protocol, opaque here."""

    round: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site's answer when it cannot or will not do what was asked."""

    code: int
    message: str


def _head(records: RecordDict) -> dict[str, Any]:
    head = records.config_records.get(_HEAD)
    if head is None:
        raise WireError("A message carries no 'umbel' record: both ends must run the same version of umbel.")
    return dict(head)


def _take(head: dict[str, Any], key: str, kind: type) -> Any:
    value = head.get(key)
    if type(value) is not kind:
        raise WireError(
            f"A message's field {key!r} is missing or not {kind.__name__}: both ends must run the same umbel."
        )
    return value


def _array(records: RecordDict, *allowed: type) -> npt.NDArray[Any]:
    """The message's vector, of the first allowed dtype or, where it says so, of another allowed one."""
    head = records.config_records.get(_HEAD)
    if head is not None and "vector" in head:
        return _inlined(dict(head), allowed)
    record = records.array_records.get(_VECTOR)
    if record is None or "v" not in record:
        raise WireError("A message carries no vector: both ends must run the same version of umbel.")
    if len(record["v"].shape) != 1:
        raise WireError(f"A message's vector has shape {tuple(record['v'].shape)}, expected one dimension.")
    said = next((dtype for dtype in allowed if record["v"].dtype == np.dtype(dtype).name), allowed[0])
    return _value(record["v"], said)


def _inlined(head: dict[str, Any], allowed: tuple[type, ...]) -> npt.NDArray[Any]:
    data, said = _take(head, "vector", bytes), _take(head, "dtype", str)
    dtype = next((np.dtype(dtype) for dtype in allowed if np.dtype(dtype).name == said), None)
    if dtype is None:
        raise WireError(f"A message's vector is of {said[:40]}, expected {np.dtype(allowed[0]).name}.")
    if len(data) % dtype.itemsize:
        raise WireError("A message's vector cannot be read: it was truncated or altered on the way.")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)


def _value(array: Array, dtype: type) -> npt.NDArray[Any]:
    if array.stype != "numpy.ndarray" or array.dtype != np.dtype(dtype).name:
        raise WireError(f"A message's array is {array.stype} of {array.dtype}, expected {np.dtype(dtype).name}.")
    value = _stored(array, np.dtype(dtype))
    if value is None:
        raise WireError("A message's array cannot be read: it was truncated or altered on the way.")
    return value


def _stored(array: Array, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """The values in ``array.data``, copied; None unless they are exactly those that shape and dtype promise.

    numpy's own reader sets memory aside for whatever a header declares, before it looks for the values.
    """
    head = _NPY.match(array.data)
    if head is None or int.from_bytes(head[1], "little") != head.end() - 10:
        return None
    if np.dtype(head[2].decode()) != dtype or head[3].decode() != repr(tuple(array.shape)):
        return None
    if math.prod(array.shape) * dtype.itemsize != len(array.data) - head.end():
        return None
    try:
        return np.frombuffer(array.data, dtype, offset=head.end()).reshape(array.shape).copy()
    except ValueError:  # an empty array of more dimensions, or longer ones, than numpy can count
        return None


def _pack(head: dict[str, Any], vector: npt.NDArray[Any] | None = None) -> RecordDict:
    if vector is not None and vector.nbytes <= INLINE:
        little = vector.astype(vector.dtype.newbyteorder("<"), copy=False)
        head = {**head, "vector": little.tobytes(), "dtype": vector.dtype.name}
    records = RecordDict({_HEAD: ConfigRecord(head)})
    if vector is not None and vector.nbytes > INLINE:
        records[_VECTOR] = ArrayRecord(array_dict={"v": Array(np.ascontiguousarray(vector))})
    return records


def _with_extras(records: RecordDict, extras: dict[str, npt.NDArray[np.float32]]) -> RecordDict:
    if extras:
        arrays = {name: Array(np.ascontiguousarray(array)) for name, array in extras.items()}
        records[_EXTRAS] = ArrayRecord(array_dict=arrays)
    return records


def _extras(records: RecordDict) -> dict[str, npt.NDArray[np.float32]]:
    return {name: _value(array, np.float32) for name, array in records.array_records.get(_EXTRAS, {}).items()}


def payload_bytes(records: RecordDict) -> int:
    """Bytes of the values of all arrays in a message, which is all but a few hundred bytes of what travels.

    An array that says more than it carries, or is of no dtype of ours, counts with what it carries.
    """
    head = records.config_records.get(_HEAD)
    inlined = None if head is None else head.get("vector")
    arrays = sum(_bytes(array) for record in records.array_records.values() for array in record.values())
    return arrays + (len(inlined) if isinstance(inlined, bytes) else 0)


def _bytes(array: Array) -> int:
    said = math.prod(array.shape) * _ITEM.get(array.dtype, -1)
    return said if 0 <= said <= len(array.data) else len(array.data)


def pack_description(description: Description) -> RecordDict:
    """A description as Flower records."""
    return _pack({name: getattr(description, name) for name in Description.__slots__})


def unpack_description(records: RecordDict) -> Description:
    """Reads :func:`pack_description`. Raises WireError."""
    head = _head(records)
    text = {name: _take(head, name, str) for name in ("site", "spec_hash", "base_hash", "version")}
    return Description(rank=_take(head, "rank", int), **text)


def pack_train_order(order: TrainOrder) -> RecordDict:
    """A train order as Flower records. The records may be shared by all messages of a round."""
    head: dict[str, Any] = {
        "round": order.round,
        "spec_hash": order.spec_hash,
        "pooled": order.pooled,
        "amount": order.amount,
        "pass": order.pass_number,
        "secagg": order.secagg if order.secagg is not None else b"",
    }
    return _with_extras(_pack(head, order.adapter), order.extras)


def unpack_train_order(records: RecordDict) -> TrainOrder:
    """Reads :func:`pack_train_order`. Raises WireError."""
    head = _head(records)
    return TrainOrder(
        round=_take(head, "round", int),
        spec_hash=_take(head, "spec_hash", str),
        adapter=_array(records, np.float32),
        secagg=_take(head, "secagg", bytes) or None,
        pooled=_take(head, "pooled", bool),
        amount=_take(head, "amount", int),
        extras=_extras(records),
        pass_number=_take(head, "pass", int),
    )


def pack_train_reply(reply: TrainReply) -> RecordDict:
    """A plain train reply as Flower records."""
    records = _pack({"spec_hash": reply.spec_hash}, reply.update)
    records[_METRICS] = MetricRecord({key: float(value) for key, value in reply.metrics.items()})
    return records


def unpack_train_reply(records: RecordDict) -> TrainReply:
    """Reads :func:`pack_train_reply`. Raises WireError."""
    head = _head(records)
    record = records.metric_records.get(_METRICS, MetricRecord())
    metrics = {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
    return TrainReply(_take(head, "spec_hash", str), _array(records, np.float32, np.uint8), metrics)


def pack_evaluate_order(order: EvaluateOrder) -> RecordDict:
    """An evaluate order as Flower records."""
    return _with_extras(_pack({"round": order.round, "spec_hash": order.spec_hash}, order.adapter), order.extras)


def unpack_evaluate_order(records: RecordDict) -> EvaluateOrder:
    """Reads :func:`pack_evaluate_order`. Raises WireError."""
    head = _head(records)
    adapter, extras = _array(records, np.float32), _extras(records)
    return EvaluateOrder(_take(head, "round", int), _take(head, "spec_hash", str), adapter, extras)


def pack_metrics(metrics: dict[str, float]) -> RecordDict:
    """Metrics alone, the reply to an evaluate order."""
    records = _pack({})
    records[_METRICS] = MetricRecord({key: float(value) for key, value in metrics.items()})
    return records


def unpack_metrics(records: RecordDict) -> dict[str, float]:
    """Reads :func:`pack_metrics`. Raises WireError."""
    _head(records)
    record = records.metric_records.get(_METRICS, MetricRecord())
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}


def pack_secagg(step: SecAggStep) -> RecordDict:
    """A protocol message as Flower records; the payload travels as a uint8 vector."""
    return _pack({"round": step.round}, np.frombuffer(step.payload, dtype=np.uint8))


def unpack_secagg(records: RecordDict) -> SecAggStep:
    """Reads :func:`pack_secagg`. Raises WireError."""
    return SecAggStep(_take(_head(records), "round", int), _array(records, np.uint8).tobytes())


def pack_refusal(refusal: Refusal) -> RecordDict:
    """A refusal as Flower records."""
    return _pack({"refused": refusal.code, "message": refusal.message})


def unpack_refusal(records: RecordDict) -> Refusal | None:
    """The refusal in a reply, or None when the reply is none."""
    head = records.config_records.get(_HEAD)
    code = head.get("refused") if head is not None else None
    if head is None or type(code) is not int:
        return None
    return Refusal(code, str(head.get("message", "")))


def secure_order(run: str, cohort: int, attempt: int) -> bytes:
    """What a coordinator says about one attempt at secure aggregation, for ``TrainOrder.secagg``.

    Everything else about the round a site derives by itself.

    Args:
        run: id of the run.
        cohort: clients invited.
        attempt: grows with every attempt at any round.
    """
    return json.dumps({"run": run, "cohort": cohort, "attempt": attempt}).encode()


def read_secure_order(data: bytes) -> tuple[str, int, int]:
    """Run, cohort and attempt of :func:`secure_order`. Raises WireError."""
    try:
        body = json.loads(data)
        run, cohort, attempt = body["run"], body["cohort"], body["attempt"]
        str(run).encode()  # half of a surrogate pair is text in JSON, and no text that could be hashed
    except (ValueError, KeyError, TypeError, RecursionError):
        run = cohort = attempt = None
    right = type(run) is str and type(cohort) is int and type(attempt) is int
    if not right or not 0 <= attempt <= _LAST_ATTEMPT or not 0 <= cohort <= _LAST_ATTEMPT:
        raise WireError("A secure-aggregation order cannot be read: both ends must run the same umbel.")
    return run, cohort, attempt
