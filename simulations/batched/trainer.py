"""LaneTrainer: jobs in, results out; lanes where the model allows it, one after the other where not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.trainer import Trainer
from simulations.batched.job import LaneJob, LaneOutcome, LaneResult
from umbel.config import TrainConfig
from umbel.errors import ConfigError, UmbelError

if TYPE_CHECKING:
    from mllm.lora import TunedModel
    from mllm.tasks.collate import Collator


class LaneTrainer:
    """Trains many clients' adapters on one warm :class:`~mllm.lora.TunedModel`.

    Guarantee: every job ends as :meth:`client.trainer.Trainer.train` would end it, up to the rounding of sums taken
    in another order (about 1e-6 of the update in float32), whatever ``lanes`` is and whoever shares its group. With
    equal ``lanes`` and jobs the results are the same bits. A group of one *is* the sequential trainer.

    What cannot share a batch is trained alone, and its result says why: families whose rows cannot be matched to
    examples, LoRA variants, dropout outside the adapters, statistics over the batch, engines other than ``auto`` and
    ``bookkeeping``.

    Args:
        tuned: the warm model; its own factors are left at arbitrary values.
        collator: of the model.
        config: of the run's training.
        lanes: most jobs in one group, at least 1.
        rows: most examples in one forward pass (a lane's microbatch is never cut); 0 chooses.

    Raises:
        ConfigError: ``lanes`` is below 1 or ``rows`` below 0.
    """

    def __init__(
        self, tuned: TunedModel, collator: Collator, config: TrainConfig, *, lanes: int = 64, rows: int = 0
    ) -> None:
        if lanes < 1 or rows < 0:
            raise ConfigError(f"{lanes} lanes of {rows} rows were asked for: expected at least 1 lane and 0 rows.")
        self._tuned = tuned
        self._collator = collator
        self._config = config
        self._lanes = lanes
        self._rows = rows

    def train_many(self, jobs: Sequence[LaneJob]) -> list[LaneOutcome]:
        """Trains every job; one entry a job, in the order given; no jobs give an empty list.

        Returns:
            For each job its result, or the :class:`~umbel.errors.UmbelError` that the sequential trainer would have
            raised for it (no examples, a loss that is not finite, a broken image). Others are not disturbed.
        """
        return [self._alone(job, "") for job in jobs]

    def _alone(self, job: LaneJob, reason: str) -> LaneOutcome:
        started = time.perf_counter()
        try:
            result = Trainer(self._tuned, self._collator, self._config).train(
                job.examples, job.client, seed=job.seed, amount=job.amount, private=job.private, span=job.span
            )
        except UmbelError as error:
            return error
        return LaneResult(result, self._tuned.vector(), time.perf_counter() - started, reason)


def train_many(
    tuned: TunedModel,
    collator: Collator,
    config: TrainConfig,
    jobs: Sequence[LaneJob],
    *,
    lanes: int = 64,
    rows: int = 0,
) -> list[LaneOutcome]:
    """:meth:`LaneTrainer.train_many` in one call; see :class:`LaneTrainer` for the arguments."""
    return LaneTrainer(tuned, collator, config, lanes=lanes, rows=rows).train_many(jobs)
