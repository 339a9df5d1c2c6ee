"""The Collector seam: a cohort and a broadcast in, the aggregate out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.population import Participant
from strategies.base import Upload
from umbel.adapter import AdapterSpec, Vector


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What goes down in one round.

    Attributes:
        round: 1-based.
        spec: of the server's adapter.
        adapter: gives the vector and its spec for a participant's rank; called once a rank.
        upload_spec: layout of the uploads.
        pooled: ask for training on pooled data (the central comparison, simulation only).
        patience: how many times longer than a round it may take.
        amount: overrides train.amount when positive.
        extras: what the strategy sends beside the adapter.
        layouts: of the uploads of clients at other ranks than the server's, by rank.
        pass_number: 1 for training, more for a later pass of the same round.
    """

    round: int
    spec: AdapterSpec
    adapter: Callable[[int], tuple[AdapterSpec, Vector]]
    upload_spec: AdapterSpec
    pooled: bool = False
    patience: int = 1
    amount: int = 0
    extras: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    layouts: dict[int, AdapterSpec] = field(default_factory=dict)
    pass_number: int = 1

    def layout(self, rank: int) -> AdapterSpec:
        """Layout of the upload of a client of this rank; in pooled training everybody works at the server's."""
        return self.upload_spec if self.pooled else self.layouts.get(rank, self.upload_spec)


@dataclass
class Collected:
    """What a round brought.

    Attributes:
        mean: the weighted mean of the uploads, or None when uploads are visible one by one.
        uploads: the single uploads, for strategies that are not linear; empty otherwise.
        survivors: names of the sites whose update counts.
        rejected: replies that were refused or could not be used, by reason.
        missing: cohort members that stayed silent.
        metrics: sums over survivors; ``loss`` is the mean of the survivors' losses weighted by examples seen.
        bytes_up: payload received.
        bytes_down: payload sent.
        secagg: what the report says about secure aggregation, if it ran.
        noised: the mean is a private release that must be used whoever survived, nobody included.
        lost: the round must be left out and never be repeated; nothing changes.
    """

    mean: Vector | None = None
    uploads: list[Upload] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    secagg: dict[str, Any] | None = None
    noised: bool = False
    lost: bool = False

    @property
    def rejections(self) -> int:
        """Number of replies that were not used."""
        return sum(self.rejected.values())

    def reject(self, reason: str) -> None:
        """Counts a reply that is not averaged."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1


class Collector(ABC):
    """Collects one round, streaming, with memory that does not grow with the cohort."""

    def describe(self, cohort: int, length: int) -> dict[str, Any] | None:
        """What the report says about secure aggregation before the first round; None for a plain collector.

        Args:
            cohort: clients invited a round.
            length: values of an upload.
        """
        return None

    @abstractmethod
    def collect(self, cohort: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """Asks the cohort to train and gathers what comes back.

        Never raises because a client failed; the caller decides whether enough survived.
        """

    def collect_groups(self, groups: Sequence[Sequence[Participant]], broadcast: Broadcast) -> list[Collected]:
        """Collects several disjoint cohorts of one round, each by itself. Default: one after the other."""
        return [self.collect(group, broadcast) for group in groups]
