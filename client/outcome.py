"""RoundOutcome: what one round of training gave, kept so that it can be sent again without training again.

A round that is asked for twice (an aborted secure aggregation, a coordinator that was killed) must not be
trained twice: under differential privacy every training releases something new and costs budget, while
sending the same update again is the same release.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.store import NodeStore
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.wire import TrainOrder

_NAME = "outcome"


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """An upload with its metrics.

    Attributes:
        key: of the order that it answers.
        update: the strategy's upload, float32; or the quantizer's bytes of it, uint8.
        spec_hash: of the upload's layout.
        metrics: ``examples``, ``seen``, ``loss`` (absent under differential privacy), ``seconds``.
    """

    key: str
    update: Vector | npt.NDArray[np.uint8]
    spec_hash: str
    metrics: dict[str, float]


def order_key(order: TrainOrder, config: RunConfig) -> str:
    """SHA-256 over everything in an order that training depends on, and the run's configuration."""
    digest = hashlib.sha256(json.dumps(config.to_flat(), sort_keys=True).encode())
    digest.update(f"{order.round} {order.spec_hash} {order.pooled} {order.amount}".encode())
    digest.update(np.ascontiguousarray(order.adapter).tobytes())
    for name in sorted(order.extras):
        digest.update(f"{name} {order.extras[name].shape}".encode())
        digest.update(np.ascontiguousarray(order.extras[name]).tobytes())
    return digest.hexdigest()


def keep_outcome(store: NodeStore, outcome: RoundOutcome) -> None:
    """Replaces the outcome in the store."""
    head = {"key": outcome.key, "spec_hash": outcome.spec_hash, "metrics": outcome.metrics}
    store.put(_NAME, save({"update": np.ascontiguousarray(outcome.update)}, metadata={"umbel": json.dumps(head)}))


def recall_outcome(store: NodeStore, key: str | None = None) -> RoundOutcome | None:
    """The kept outcome, with ``key`` only if it answers that very order; None otherwise, or when it is unreadable."""
    blob = store.get(_NAME)
    if blob is None:
        return None
    try:
        size = int.from_bytes(blob[:8], "little")
        head = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["umbel"])
        if key is not None and head["key"] != key:
            return None
        return RoundOutcome(head["key"], load(blob)["update"], head["spec_hash"], head["metrics"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def forget_outcome(store: NodeStore) -> None:
    """Erases the outcome."""
    store.delete(_NAME)
