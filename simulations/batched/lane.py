"""Lane: one job inside a group, from its first batch to its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from client.batches import shuffled_batches, steps_for
from client.trainer import TrainResult, learning_rate
from mllm.tasks.example import Example
from simulations.batched.job import LaneJob
from umbel.config import TrainConfig
from umbel.errors import ModelError, UmbelError

Indices = npt.NDArray[np.int64]
_NONE: Indices = np.empty(0, dtype=np.int64)


class Lane:
    """The batches, the random numbers and the sums of one job.

    A lane that fails takes part in no later batch; its error stands in ``error``.

    Attributes:
        job: as given.
        steps: optimizer steps of the round.
        batch: indices of the current step's examples.
    """

    def __init__(self, job: LaneJob, config: TrainConfig) -> None:
        self.job = job
        self.steps = steps_for(config, len(job.examples), job.amount)
        self.batch = _NONE
        self.error: UmbelError | None = None
        self.seconds = 0.0
        self.generator = torch.Generator().manual_seed(job.seed)
        self._config = config
        self._microbatch = config.microbatch if job.private is None else job.private.microbatch
        self._batches = self._iterate()
        self._seen, self._total = 0, 0.0
        if self.steps == 0:
            self.draw()  # for its refusal of a job without examples

    def _iterate(self) -> Iterator[Indices]:
        if self.job.private is not None:
            return self.job.private.batches(self.steps)
        return shuffled_batches(len(self.job.examples), self._config.batch_size, self.steps, self.job.seed)

    @property
    def width(self) -> int:
        """Examples that a step is expected to see: what lanes are sorted by."""
        if self.job.private is not None:
            return round(self.job.private.expected)
        return min(self._config.batch_size, len(self.job.examples))

    def draw(self) -> None:
        """Moves on to the next step's batch; none after a failure.

        Raises nothing: a lane without examples fails.
        """
        self.batch = _NONE
        if self.error is None:
            try:
                self.batch = next(self._batches, _NONE)
            except UmbelError as error:
                self.error = error

    def microbatches(self) -> int:
        """Forward passes of this step's batch."""
        return -(-len(self.batch) // self._microbatch)

    def chunk(self, number: int) -> list[Example]:
        """The examples of one microbatch, cut where the sequential trainer would cut; empty past the last."""
        if self.error is not None:
            return []
        part = self.batch[number * self._microbatch : (number + 1) * self._microbatch]
        return [self.job.examples[int(i)] for i in part]

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0-based."""
        first, last = self.job.span
        return learning_rate(self._config, first + (last - first) * step / max(self.steps, 1))

    def note(self, losses: float) -> None:
        """Adds the sum of the step's losses; a sum that is not finite fails the lane (without privacy)."""
        if self.job.private is not None or self.error is not None:
            return
        if not np.isfinite(losses):
            self.error = ModelError(
                "The training loss is not finite: lower train.learning-rate or look for a broken example."
            )
            return
        self._seen += len(self.batch)
        self._total += losses

    def result(self) -> TrainResult:
        """What the sequential trainer would return."""
        if self.job.private is not None:
            return TrainResult(steps=self.steps, seen=self.steps * self.job.private.expected, loss=None)
        return TrainResult(steps=self.steps, seen=float(self._seen), loss=self._total / max(self._seen, 1))


def order_lanes(lanes: Sequence[Lane]) -> list[int]:
    """Positions sorted so that neighbours waste little: most steps first, then the widest batches."""
    return sorted(range(len(lanes)), key=lambda i: (-lanes[i].steps, -lanes[i].width, i))
