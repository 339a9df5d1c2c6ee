"""Hostile sites: they train like the others and send something else. For measuring robust aggregation.

The lie is told inside the site, before masking, so it works under secure aggregation as well: nobody can see it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp

from client.batches import derive_seed
from client.client_app import make_app
from client.local_site import LocalSite
from client.outcome import RoundOutcome, keep_outcome
from client.round_job import RoundJob
from client.site import Site
from client.store import ContextStore
from client.trainer import TrainResult
from strategies.compression.quantize import StochasticQuantizer
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.errors import ConfigError

Attack = Literal["sign-flip", "scale", "random"]

STRENGTH: dict[Attack, float] = {"sign-flip": 4.0, "scale": 20.0, "random": 20.0}
"""How many times the honest norm a hostile update has. A fifth of the clients that send -4 v cancel the others."""


def corrupted(vector: Vector, attack: Attack, seed: int, strength: float | None = None) -> Vector:
    """What a hostile client sends in place of ``vector``, float32 of the same length.

    Args:
        vector: its honest update.
        attack: ``sign-flip`` sends -k v, ``scale`` k v, ``random`` Gaussian values of norm k ||v||.
        seed: of the random values.
        strength: k; by default :data:`STRENGTH`.
    """
    k = np.float32(STRENGTH[attack] if strength is None else strength)
    if attack == "sign-flip":
        return np.asarray(-k * vector, dtype=np.float32)
    if attack == "scale":
        return np.asarray(k * vector, dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(vector.size).astype(np.float32)
    length = float(np.linalg.norm(noise)) or 1.0
    return np.asarray(noise * (k * np.float32(np.linalg.norm(vector)) / np.float32(length)), dtype=np.float32)


class HostileSite(LocalSite):
    """A site of the simulation whose every update is corrupted."""

    def __init__(
        self, config: RunConfig, index: int, count: int, store: ContextStore, *, run: str, attack: Attack
    ) -> None:
        super().__init__(config, index, count, store, run=run)
        self._attack: Attack = attack

    def conclude(self, job: RoundJob, result: TrainResult, local: Vector, seconds: float) -> RoundOutcome:
        """See LocalSite; then the lie takes the place of the update."""
        honest, order = super().conclude(job, result, local, seconds), job.order
        seed = derive_seed("attack", self.name, order.round)
        if honest.update.dtype == np.uint8:
            vector = corrupted(StochasticQuantizer.decode(honest.update.tobytes()), self._attack, seed)
            quantizer = StochasticQuantizer(self._config.strategy.bits)
            lie = replace(honest, update=np.frombuffer(quantizer.encode(vector, seed), dtype=np.uint8))
        else:
            lie = replace(honest, update=corrupted(np.asarray(honest.update, np.float32), self._attack, seed))
        keep_outcome(self._store, lie)
        return lie


def hostile_app(nodes: Collection[int], attack: Attack) -> ClientApp:
    """A ClientApp for simulations in which the partitions ``nodes`` are hostile and all others honest."""

    def opener(context: Context) -> Site:
        config = RunConfig.from_flat(context.run_config)
        index, count = context.node_config.get("partition-id"), context.node_config.get("num-partitions")
        if not (isinstance(index, int) and isinstance(count, int)):
            raise ConfigError("A hostile site was asked for outside a simulation: its node needs a partition-id.")
        store, run = ContextStore(context.state), str(context.run_id)
        if index in nodes:
            return HostileSite(config, index, count, store, run=run, attack=attack)
        return LocalSite(config, index, count, store, run=run)

    return make_app(opener)


def hostile_nodes(clients: int, share: float, seed: int) -> frozenset[int]:
    """A random ``share`` of the partitions, rounded down."""
    chosen: Callable[..., object] = np.random.default_rng([seed, clients]).choice
    return frozenset(int(node) for node in np.asarray(chosen(clients, size=int(share * clients), replace=False)))
