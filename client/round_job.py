"""RoundJob: everything that one site's round of training needs, before a step is made.

Between a job and its outcome lies nothing but training, so jobs of several virtual devices can be trained together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.client_round import ClientRound
from umbel.side import SideTerm
from umbel.wire import TrainOrder

if TYPE_CHECKING:
    from client.private import PrivateSteps
    from mllm.lora import TunedModel
    from mllm.tasks.base import ExampleSet
    from mllm.tasks.collate import Collator


@dataclass(frozen=True, slots=True)
class RoundJob:
    """A round that was paid for and is not trained yet.

    Attributes:
        key: of the order, under which the outcome is kept.
        order: what was asked.
        client: the strategy's client half.
        examples: the site's own.
        tuned: the site's model, which other devices of the process share.
        collator: of that model.
        seed: fixes batches and dropout.
        span: where the round lies in the run, as shares of it.
        started: ``time.perf_counter`` when work on the order began.
        side: corrections of frozen weights by module, which the model must be loaded with.
        private: example-level DP-SGD, or None.
        settle: must be called once after training, before anything leaves; None when there is nothing to settle.
        line: of the ledger, that pays for this training alone; 0 where there is none.
    """

    key: str
    order: TrainOrder
    client: ClientRound
    examples: ExampleSet
    tuned: TunedModel
    collator: Collator
    seed: int
    span: tuple[float, float]
    started: float
    side: Mapping[str, SideTerm] = field(default_factory=dict)
    private: PrivateSteps | None = None
    settle: Callable[[], None] | None = None
    line: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds since work on the order began."""
        return time.perf_counter() - self.started
