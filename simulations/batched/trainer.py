"""LaneTrainer: jobs in, results out; lanes where the model allows it, one after the other where not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from client.trainer import Trainer
from simulations.batched.collation import kept_collator
from simulations.batched.fit import lane_sites, why_not
from simulations.batched.group import LaneGroup, local_vectors
from simulations.batched.job import LaneJob, LaneOutcome, LaneResult
from simulations.batched.lane import Lane, order_lanes
from simulations.batched.owners import UnmappedRows
from umbel.config import TrainConfig
from umbel.errors import ConfigError, UmbelError
from umbel.side import SideTerm

if TYPE_CHECKING:
    from mllm.lora import TunedModel
    from mllm.tasks.collate import Collator


_SIZES = ((20_000_000, 256), (200_000_000, 64))
_EXACT = ("auto", "bookkeeping")


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
        self._kept = kept_collator(collator)
        self._config = config
        self._lanes = lanes
        self._most = rows or default_rows(sum(p.numel() for p in tuned.base.model.parameters()))
        self.batched_seconds = 0.0
        """Seconds spent in joint forward and backward passes so far."""

    def train_many(self, jobs: Sequence[LaneJob]) -> list[LaneOutcome]:
        """Trains every job; one entry a job, in the order given; no jobs give an empty list.

        Returns:
            For each job its result, or the :class:`~umbel.errors.UmbelError` that the sequential trainer would have
            raised for it (no examples, a loss that is not finite, a broken image). Others are not disturbed.
        """
        outcomes: list[LaneOutcome | None] = [None] * len(jobs)
        reason = why_not(self._tuned) if self._lanes > 1 and len(jobs) > 1 else ""
        alone: list[tuple[int, str]] = []
        for positions in self._groups(jobs) if self._lanes > 1 and not reason else [[i] for i in range(len(jobs))]:
            why = reason or _alone_because(jobs[positions[0]])
            if why or len(positions) == 1:
                alone += [(i, why) for i in positions]
                continue
            try:
                found = self._together([jobs[i] for i in positions])
            except UmbelError as error:
                # Without privacy training may be repeated; with it samples and noise have been drawn.
                if jobs[positions[0]].private is None or (isinstance(error, UnmappedRows) and not error.late):
                    alone += [(i, str(error)) for i in positions]
                    continue
                found = [error] * len(positions)
            for i, outcome in zip(positions, found, strict=True):
                outcomes[i] = outcome
        for i, why in alone:
            outcomes[i] = self._alone(jobs[i], why)
        return [outcome for outcome in outcomes if outcome is not None]

    def _groups(self, jobs: Sequence[LaneJob]) -> list[list[int]]:
        """Positions of jobs that may share a batch, those alike beside each other, at most ``lanes`` together."""
        kinds: dict[object, list[int]] = {}
        for i, job in enumerate(jobs):
            private = job.private
            clipped = private and (private.clipping_norm, private.engine)
            key = (job.client.spec.hash, job.client.trainable, clipped, _digest(job.side))
            kinds.setdefault(key, []).append(i)
        groups = []
        for positions in kinds.values():
            order = order_lanes([Lane(jobs[i], self._config) for i in positions])
            chosen = [positions[k] for k in order]
            groups += [chosen[start : start + self._lanes] for start in range(0, len(chosen), self._lanes)]
        return groups

    def _together(self, jobs: Sequence[LaneJob]) -> list[LaneOutcome]:
        started = time.perf_counter()
        lanes = [Lane(job, self._config) for job in jobs]
        tuned = self._tuned.at_rank(jobs[0].client.spec.lora.rank)
        tuned.load(jobs[0].client.start, jobs[0].side)  # for its side terms and its scale
        group = LaneGroup(tuned, self._kept, self._config, lanes, lane_sites(tuned), self._most)
        try:
            group.run()
        finally:
            self.batched_seconds += group.batched_seconds
        results, vectors = [lane.result() for lane in lanes], local_vectors(group)
        seconds = (time.perf_counter() - started) / max(sum(result.seen for result in results), 1.0)
        return [
            lane.error or LaneResult(result, vector, seconds * result.seen)
            for lane, result, vector in zip(lanes, results, vectors, strict=True)
        ]

    def _alone(self, job: LaneJob, reason: str) -> LaneOutcome:
        started = time.perf_counter()
        try:
            tuned = self._tuned.at_rank(job.client.spec.lora.rank)
            result = Trainer(tuned, self._collator, self._config).train(
                job.examples,
                job.client,
                seed=job.seed,
                amount=job.amount,
                private=job.private,
                span=job.span,
                side=job.side,
            )
        except UmbelError as error:
            return error
        return LaneResult(result, tuned.vector(), time.perf_counter() - started, reason)


def default_rows(parameters: int) -> int:
    """Examples in one joint pass when nobody says: what is still faster together on one core, and fits its memory.

    Args:
        parameters: of the base; 4-bit weights count as half.
    """
    return next((rows for below, rows in _SIZES if parameters < below), 16)


def _digest(side: Mapping[str, SideTerm]) -> bytes:
    """Equal for equal side terms, which all jobs of a group must share."""
    digest = hashlib.sha256()
    for module in sorted(side):
        digest.update(f"{module} {side[module].a.shape} {side[module].b.shape}".encode())
        digest.update(np.ascontiguousarray(side[module].a).tobytes())
        digest.update(np.ascontiguousarray(side[module].b).tobytes())
    return digest.digest()


def _alone_because(job: LaneJob) -> str:
    """Why this job cannot be a lane; "" when it can."""
    if not job.client.trainable:
        return "nothing is trainable"
    if job.private is not None and job.private.engine not in _EXACT:
        return f"the clipping engine {job.private.engine!r} was asked for"
    return ""


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
