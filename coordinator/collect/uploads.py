"""What the coordinator makes of one plain reply: checked, decoded, weighed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from coordinator.collect.base import Broadcast
from strategies.compression.quantize import StochasticQuantizer
from umbel import wire
from umbel.adapter import Vector
from umbel.errors import AdapterError, WireError


@dataclass(frozen=True, slots=True)
class PlainUpload:
    """One usable upload: finite float32 values, a positive weight, and the metrics that came with it."""

    vector: Vector
    weight: float
    metrics: dict[str, float]


def read_upload(
    records: RecordDict, rank: int, broadcast: Broadcast, *, by_examples: bool = False, quantized: bool = False
) -> PlainUpload:
    """Reads a train reply. Nothing that it says of itself is believed beyond its values and its number of examples.

    Args:
        records: of the reply.
        rank: of the client, as it described itself.
        broadcast: what it answers.
        by_examples: weigh by the number of examples instead of by 1.
        quantized: the run's uploads are a quantizer's bytes; float32 values are then refused, and the reverse.

    Raises:
        WireError: the reply cannot be read, or is encoded otherwise than the run says.
        AdapterError: another layout or length, a value that is not finite, or a weight that is not positive.
    """
    return check_upload(wire.unpack_train_reply(records), rank, broadcast, by_examples=by_examples, quantized=quantized)


def check_upload(
    reply: wire.TrainReply, rank: int, broadcast: Broadcast, *, by_examples: bool = False, quantized: bool = False
) -> PlainUpload:
    """:func:`read_upload` of a reply that was never packed, because it is summed in the process that made it.

    Raises:
        WireError, AdapterError: as :func:`read_upload`.
    """
    expected = broadcast.layout(rank)
    if reply.spec_hash != expected.hash:
        raise AdapterError("An update has another layout than asked for: both ends must use the same strategy.")
    if (reply.update.dtype == np.uint8) != (quantized and not broadcast.pooled):
        raise WireError("An update is encoded otherwise than asked for: both ends must use the same compression.")
    vector = (
        np.asarray(reply.update, dtype=np.float32)
        if reply.update.dtype == np.float32
        else _decode(reply, expected.size)
    )
    expected.check(vector)
    weight = reply.metrics.get("examples", 0.0) if by_examples else 1.0
    if not (np.isfinite(weight) and weight > 0):
        raise AdapterError(f"An update's weight is {weight}, expected a positive number: the client has no data.")
    return PlainUpload(vector, weight, reply.metrics)


def _decode(reply: wire.TrainReply, size: int) -> Vector:
    return StochasticQuantizer.decode(reply.update.tobytes(), size)
