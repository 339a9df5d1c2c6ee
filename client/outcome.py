"""RoundOutcome: what one round of training gave, kept so that it can be sent again without training again.

A round that is asked for twice (an aborted secure aggregation, a coordinator that was killed) must not be
trained twice: under differential privacy every training releases something new and costs budget, while
sending the same update again is the same release.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.store import NodeStore
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.wire import TrainOrder

_NAME = "outcome"
_TRAINED = "trained"
_latest: tuple[weakref.ref[Vector], tuple[object, ...], str] | None = None
"""The last key: many virtual devices of a process answer one and the same order."""


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
    global _latest
    known = (order.round, order.spec_hash, order.pooled, order.amount, order.pass_number, config)
    if _latest is not None and not order.extras and _latest[0]() is order.adapter and _latest[1] == known:
        return _latest[2]
    digest = hashlib.sha256(json.dumps(config.to_flat(), sort_keys=True).encode())
    digest.update(f"{order.round} {order.spec_hash} {order.pooled} {order.amount} {order.pass_number}".encode())
    digest.update(np.ascontiguousarray(order.adapter).tobytes())
    for name in sorted(order.extras):
        digest.update(f"{name} {order.extras[name].shape}".encode())
        digest.update(np.ascontiguousarray(order.extras[name]).tobytes())
    if not order.extras:
        _latest = (weakref.ref(order.adapter), known, digest.hexdigest())
    return digest.hexdigest()


def keep_outcome(store: NodeStore, outcome: RoundOutcome, pass_number: int = 1) -> None:
    """Replaces the outcome of this pass in the store; each pass of a round has its own."""
    head = {"key": outcome.key, "spec_hash": outcome.spec_hash, "metrics": outcome.metrics}
    data = save({"update": np.ascontiguousarray(outcome.update)}, metadata={"umbel": json.dumps(head)})
    store.put(_name(pass_number), data)


def recall_outcome(store: NodeStore, key: str | None = None, pass_number: int = 1) -> RoundOutcome | None:
    """The kept outcome, with ``key`` only if it answers that very order; None otherwise, or when it is unreadable."""
    found = _read(store, _name(pass_number))
    if found is None:
        return None
    head, arrays = found
    try:
        if key is not None and head["key"] != key:
            return None
        return RoundOutcome(head["key"], arrays["update"], head["spec_hash"], head["metrics"])
    except (KeyError, TypeError):
        return None


def forget_outcome(store: NodeStore) -> None:
    """Erases the outcome."""
    store.delete(_NAME)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round's training left, for the later passes of a strategy that asks twice.

    Attributes:
        round: 1-based.
        local: the adapter after training.
        start: the adapter that training began with.
        metrics: as the first pass told them.
    """

    round: int
    local: Vector
    start: Vector
    metrics: dict[str, float]


def keep_trained(store: NodeStore, trained: Trained) -> None:
    """Replaces what the last round's training left."""
    head = {"round": trained.round, "metrics": trained.metrics}
    arrays = {"local": np.ascontiguousarray(trained.local), "start": np.ascontiguousarray(trained.start)}
    store.put(_TRAINED, save(arrays, metadata={"umbel": json.dumps(head)}))


def recall_trained(store: NodeStore, round_number: int) -> Trained | None:
    """What training left in this very round, or None."""
    found = _read(store, _TRAINED)
    if found is None:
        return None
    head, arrays = found
    try:
        if head["round"] != round_number:
            return None
        return Trained(round_number, arrays["local"], arrays["start"], head["metrics"])
    except (KeyError, TypeError):
        return None


def _name(pass_number: int) -> str:
    return _NAME if pass_number == 1 else f"{_NAME}-{pass_number}"


def _read(store: NodeStore, name: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    blob = store.get(name)
    if blob is None:
        return None
    try:
        size = int.from_bytes(blob[:8], "little")
        return json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["umbel"]), load(blob)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
