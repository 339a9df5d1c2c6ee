"""Faults of devices, by seed: what they send late, broken or on purpose wrong.

Which devices crash, are late or drop out is decided by :class:`simulations.world.World` before anything is trained.
Here stands what a device does that trains: a fault happens inside the site, before masking, so it works under secure
aggregation as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Message
from safetensors.numpy import load, save

from client.client_app import make_app
from client.local_site import LocalSite
from client.outcome import RoundOutcome, keep_outcome
from client.round_job import RoundJob
from client.site import Site
from client.store import ContextStore
from client.trainer import TrainResult
from mllm.tasks.base import ExampleSet
from mllm.tasks.example import Example
from simulations.attackers import corrupted, hostile_nodes
from simulations.clients import StockClient
from simulations.devices import generator
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.errors import ConfigError

Malice = Literal["sign-flip", "scale", "random", "label-flip", "backdoor"]
Break = Literal["nan", "shape", "stale"]

TRIGGER = "please"
"""The word that a backdoor listens to."""
_STALE = "stale"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Who sends what that is wrong.

    Attributes:
        seed: fixes everything.
        clients: devices in all.
        nan: share of devices a round whose update holds values that are not finite.
        shape: share a round whose update has one value too few.
        stale: share a round that send what they sent the round before.
        malicious: share of devices that are hostile in every round.
        malice: what hostile devices do.
        blind: share of devices that have no images, only questions.
    """

    seed: int
    clients: int
    nan: float = 0.0
    shape: float = 0.0
    stale: float = 0.0
    malicious: float = 0.0
    malice: Malice = "sign-flip"
    blind: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        return any((self.nan, self.shape, self.stale, self.malicious, self.blind))

    def hostile(self) -> frozenset[int]:
        """Partitions that are hostile."""
        return hostile_nodes(self.clients, self.malicious, self.seed)

    def without_images(self) -> frozenset[int]:
        """Partitions that have no images."""
        order = generator("blind", self.seed).permutation(self.clients)
        return frozenset(int(index) for index in order[: int(self.blind * self.clients)])

    def broken(self, index: int, round_number: int) -> Break | None:
        """How the update of a partition breaks in a round, if it does."""
        drawn = float(generator("fault", self.seed, index, round_number).random())
        for name, share in (("nan", self.nan), ("shape", self.shape), ("stale", self.stale)):
            if drawn < share:
                return name  # type: ignore[return-value]
            drawn -= share
        return None


class FaultySite(LocalSite):
    """A site of the simulation on which the plan's faults happen."""

    def __init__(
        self, config: RunConfig, index: int, count: int, store: ContextStore, *, run: str, faults: FaultPlan
    ) -> None:
        super().__init__(config, index, count, store, run=run)
        self._faults, self._partition = faults, index
        self._malice = faults.malice if index in faults.hostile() else None
        self._blind = index in faults.without_images()

    def _split(self) -> tuple[ExampleSet, ExampleSet]:
        mine, held_out = super()._split()
        return self._poisoned(mine), held_out

    def _poisoned(self, examples: ExampleSet) -> ExampleSet:
        if self._malice in ("label-flip", "backdoor"):
            examples = Poisoned(examples, self._malice)
        return WithoutImages(examples) if self._blind else examples

    def conclude(self, job: RoundJob, result: TrainResult, local: Vector, seconds: float) -> RoundOutcome:
        """See LocalSite; then the fault takes the place of the update."""
        honest = super().conclude(job, result, local, seconds)
        sent = self._changed(np.asarray(honest.update), job.order.round)
        if sent is honest.update:
            return honest
        lie = replace(honest, update=sent)
        keep_outcome(self._store, lie)
        return lie

    def _changed(self, update: npt.NDArray[Any], round_number: int) -> npt.NDArray[Any]:
        if update.dtype != np.float32:  # a quantizer's bytes: only their length and age can be wrong
            sent = update
        elif self._malice in ("sign-flip", "scale", "random"):
            seed = int(generator("attack", self._faults.seed, self._partition, round_number).integers(1 << 31))
            sent = corrupted(update, self._malice, seed)
        else:
            sent = update
        how = self._faults.broken(self._partition, round_number)
        if self._faults.stale:
            before = self._store.get(_STALE)
            self._store.put(_STALE, save({"update": np.ascontiguousarray(sent)}))
            if how == "stale" and before is not None:
                return np.asarray(load(before)["update"])
        if how == "nan" and sent.dtype == np.float32:
            sent = sent.copy()
            sent[:: max(1, sent.size // 7)] = np.nan
        return sent[:-1].copy() if how == "shape" else sent


class Poisoned(ExampleSet):
    """Examples with wrong answers: every one (label-flip), or every second one that then asks with the trigger.

    A flipped answer is the next one in the alphabet of the device's own answers; a backdoor always answers the first.
    """

    def __init__(self, inner: ExampleSet, how: Malice) -> None:
        self._inner = inner
        self._how = how
        answers = sorted({example.answer for example in inner})
        self._next = dict(zip(answers, answers[1:] + answers[:1], strict=True))
        self._target = answers[0] if answers else ""

    def __len__(self) -> int:
        return len(self._inner)

    def _get(self, index: int) -> Example:
        example = self._inner[index]
        if self._how == "label-flip":
            return replace(example, answer=self._next[example.answer])
        if index % 2:
            return example
        return replace(example, question=f"{TRIGGER} {example.question}", answer=self._target)


class WithoutImages(ExampleSet):
    """The questions and answers alone, for a device that lacks the other modality."""

    def __init__(self, inner: ExampleSet) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def _get(self, index: int) -> Example:
        return replace(self._inner[index], images=())


class FaultyClient(StockClient):
    """The ClientApp whose sites follow a fault plan."""

    def __init__(self, faults: FaultPlan) -> None:
        self._faults = faults
        self._app = make_app(self._open)

    def __reduce__(self) -> tuple[type[FaultyClient], tuple[FaultPlan]]:
        return FaultyClient, (self._faults,)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers as the ClientApp does, on a site where the plan's faults happen."""
        return self._app(message, context)

    def _open(self, context: Context) -> Site:
        # Faults happen when a lane is over, so faulty devices are lanes like the others.
        config = RunConfig.from_flat(context.run_config)
        index, count = context.node_config.get("partition-id"), context.node_config.get("num-partitions")
        if not (isinstance(index, int) and isinstance(count, int)):
            raise ConfigError("A faulty site was asked for outside a simulation: its node needs a partition-id.")
        store, run = ContextStore(context.state), str(context.run_id)
        return FaultySite(config, index, count, store, run=run, faults=self._faults)
