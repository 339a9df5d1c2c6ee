"""LaneJob and LaneResult: what one client's training needs, and what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from client.trainer import TrainResult
from umbel.adapter import Vector
from umbel.errors import UmbelError
from umbel.side import SideTerm

if TYPE_CHECKING:
    from client.private import PrivateSteps
    from mllm.tasks.base import ExampleSet
    from strategies.client_round import ClientRound


@dataclass(frozen=True, slots=True)
class LaneJob:
    """One client's round of training: exactly the arguments of :meth:`client.trainer.Trainer.train`.

    Attributes:
        examples: the client's own.
        client: the strategy's client half: start vector, trainable tensors and the hooks around each step.
        seed: fixes batches and dropout (never noise).
        amount: overrides ``train.amount`` when positive.
        private: example-level DP-SGD of this client; its sampler draws the batches. Never share it between jobs.
        span: where this round lies in the whole run, as shares of it; places the learning rate's schedule.
        side: corrections of frozen weights by module, which the model computes with and does not train.
    """

    examples: ExampleSet
    client: ClientRound
    seed: int
    amount: int = 0
    private: PrivateSteps | None = None
    span: tuple[float, float] = (0.0, 1.0)
    side: Mapping[str, SideTerm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaneResult:
    """What one job gave.

    Attributes:
        result: as the sequential trainer returns it.
        local: float32 [spec.size], the client's adapter after training (the sequential trainer leaves it in the model).
        seconds: this job's share of the time that its group took, by examples seen.
        reason: why the job was trained alone; "" where it was a lane among others.
    """

    result: TrainResult
    local: Vector
    seconds: float
    reason: str = ""


LaneOutcome = LaneResult | UmbelError
"""A job's result, or the error that the sequential trainer would have raised for this job alone."""
