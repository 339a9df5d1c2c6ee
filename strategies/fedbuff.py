"""FedBuff: buffered asynchronous aggregation (Nguyen et al. 2022, arXiv 2106.06581, algorithm 1).

Clients train on whatever version they last got. The server collects uploads until ``goal`` have arrived, then
makes one step with their mean; an upload trained s versions ago counts with its weight over sqrt(1 + s). A pure
state machine: no clock, no transport.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from strategies.base import AdapterStrategy, Upload
from umbel.adapter import Vector
from umbel.errors import StrategyError


@dataclass(frozen=True, slots=True)
class Late:
    """One upload and the version of the adapter that it was trained from."""

    client: str
    version: int
    upload: Upload


def staleness_weight(staleness: int) -> float:
    """1 / sqrt(1 + s): the paper's choice. Raises StrategyError for a negative s."""
    if staleness < 0:
        raise StrategyError("An upload claims a version of the adapter that does not exist yet: refuse its client.")
    return 1.0 / math.sqrt(1.0 + staleness)


class FedBuff:
    """The buffer of one asynchronous run.

    Uploads must be differences in a basis that stays (``facts.fixed_basis``) and of one layout, since they are added
    to a later adapter than the one they were trained from. Asynchrony has no cohort drawn at random: claim no
    amplification by sampling, and do not combine it with secure aggregation of whole cohorts.

    Args:
        strategy: a linear method of one pass, fixed basis and layout.
        goal: uploads a step, at least 1.
        max_staleness: older uploads are dropped and counted.
        version: of the adapter at the start.
    """

    def __init__(self, strategy: AdapterStrategy, goal: int, max_staleness: int = 20, version: int = 0) -> None:
        facts = strategy.facts
        if not (facts.linear and facts.fixed_basis) or strategy.passes > 1 or strategy.name.startswith("rolora"):
            raise StrategyError(
                f"Strategy {strategy.name!r} cannot take late updates: use a linear method whose coordinates stay, "
                "such as FedIT, FFA-LoRA or Fed-SB."
            )
        if goal < 1 or max_staleness < 0:
            raise StrategyError("FedBuff needs a goal of at least 1 upload and a staleness bound of at least 0.")
        self.goal = goal
        self.max_staleness = max_staleness
        self.version = version
        self.dropped = 0
        self._waiting: dict[str, Late] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, client: str, version: int, vector: Vector, weight: float) -> bool:
        """Takes one upload; True when the buffer is full and :meth:`take` must follow.

        A second upload of a client before the step replaces its first when it is at least as new, so that nobody
        counts twice. Uploads staler than ``max_staleness`` are dropped.

        Raises:
            StrategyError: a version from the future, a negative weight, or the buffer is full already.
        """
        if len(self._waiting) >= self.goal:
            raise StrategyError("The buffer is full: take its uploads before adding more.")
        if not (math.isfinite(weight) and weight >= 0):
            raise StrategyError("A client's weight is negative or not finite: every client needs an example.")
        staleness = self.version - version
        staleness_weight(staleness)
        if staleness > self.max_staleness:
            self.dropped += 1
            return False
        present = self._waiting.get(client)
        if present is not None and present.version > version:
            self.dropped += 1
            return False
        self.dropped += present is not None
        self._waiting[client] = Late(client, version, Upload(vector, weight, 0))
        return len(self._waiting) == self.goal

    def take(self, *, partial: bool = False) -> list[Upload]:
        """The uploads with staleness-weighted weights, for ``step_individual``; the version moves on by one.

        Ordered by client, so that the order of arrival changes nothing.

        Args:
            partial: take fewer than ``goal``, at the end of a run.

        Raises:
            StrategyError: the buffer is empty, or not full and ``partial`` is false.
        """
        if not self._waiting or (len(self._waiting) < self.goal and not partial):
            raise StrategyError(f"The buffer holds {len(self._waiting)} of {self.goal} uploads: wait for more.")
        uploads = [
            Upload(late.upload.vector, late.upload.weight * staleness_weight(self.version - late.version), 0)
            for _, late in sorted(self._waiting.items())
        ]
        self._waiting.clear()
        self.version += 1
        return uploads
