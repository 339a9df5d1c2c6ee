"""The Site seam: what the Flower ClientApp may ask of the place where the data lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """What a site has spent of its budget.

    Attributes:
        epsilon: spent so far at ``delta``; 0 when nothing was released.
        delta: the delta of ``epsilon``.
        events: number of booked events.
    """

    epsilon: float
    delta: float
    events: int


class Site(ABC):
    """A place that holds data, a model and a budget. It may refuse anything with an UmbelError."""

    @abstractmethod
    def describe(self) -> Description:
        """Says who it is and which adapter it would train; nothing about its data."""

    @abstractmethod
    def train(self, order: TrainOrder) -> TrainReply | SecAggStep:
        """Trains one round.

        Returns the update; under secure aggregation only the first protocol message, while the
        update stays at the site.
        """

    @abstractmethod
    def secagg(self, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """Answers one later protocol message of secure aggregation."""

    @abstractmethod
    def evaluate(self, order: EvaluateOrder) -> dict[str, float]:
        """Evaluates an adapter on the site's own data: sums named ``examples``, ``correct``, ``loss``."""

    @abstractmethod
    def ledger(self) -> LedgerSummary:
        """What this site has spent of its privacy budget."""

    def close(self) -> None:  # noqa: B027 (most sites hold nothing that a message opened)
        """Lets go of what was opened for one message."""
