"""Which units take part in each step, drawn from the CSPRNG.

| sampler | draw | accounted as |
|---|---|---|
| ``PoissonSampler`` | each index independently with probability q; may be empty | amplified by q |
| ``FixedSizeSampler`` | a uniform subset of fixed size | amplified by m/n, replace-one only |
| ``ShuffledSampler`` | each index once an epoch, at an independently drawn step | one full release an epoch |
| ``CyclicSampler`` | each index once an epoch, at the same step every epoch | one full release an epoch, or DP-FTRL |
| ``FullSampler`` | every index every step | full release every step |

An empty draw still is a step: noise is added and the step is counted. Batches are normalised by the public
expected size, never by the size drawn, which depends on who is in the data.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from privacy.noise.source import SYSTEM, NoiseSource, key_stream
from privacy.plan import PrivacyPlan, Sampler
from umbel.errors import PlanError

Indices = npt.NDArray[np.int64]


class IndexSampler(ABC):
    """Draws one step's indices after another out of ``range(n)``.

    Attributes:
        n: size of the data set; 0 gives empty draws.
        expected: the public expected size of a draw, the divisor of the sum.
    """

    n: int
    expected: float

    @abstractmethod
    def draw(self) -> Indices:
        """The indices of the next step: int64, ascending, no index twice, possibly empty."""

    def batches(self, steps: int) -> Iterator[Indices]:
        """The draws of ``steps`` steps."""
        for _ in range(steps):
            yield self.draw()


class PoissonSampler(IndexSampler):
    """Each index independently with probability ``q``, 0 <= q <= 1.

    The comparison is with floor(q 2^64) of a 64-bit word, so the probability is never above q (and below it
    by at most 2^-53 of q, the resolution of q itself).
    """

    def __init__(self, n: int, q: float, source: NoiseSource = SYSTEM) -> None:
        if not 0 <= q <= 1:
            raise PlanError(f"A sampling rate is {q}, expected 0 to 1: lower the batch size to at most the data set.")
        self.n, self.q, self.expected = _count(n), q, n * q
        self._threshold, self._source = math.floor(q * 2.0**64), source

    def draw(self) -> Indices:
        """See :meth:`IndexSampler.draw`."""
        if self.q == 1:
            return np.arange(self.n, dtype=np.int64)
        return np.flatnonzero(self._source.words(self.n) < np.uint64(self._threshold)).astype(np.int64)


class FixedSizeSampler(IndexSampler):
    """A uniformly random subset of ``size`` indices, afresh every step (probability of a tie below n^2 2^-65)."""

    def __init__(self, n: int, size: int, source: NoiseSource = SYSTEM) -> None:
        if not 0 <= size <= n:
            raise PlanError(f"A sample of {size} out of {n} was asked for: lower the batch or cohort size.")
        self.n, self.size, self.expected, self._source = _count(n), size, float(size), source

    def draw(self) -> Indices:
        """See :meth:`IndexSampler.draw`."""
        if self.size == self.n:
            return np.arange(self.n, dtype=np.int64)
        keys = self._source.words(self.n)
        return np.sort(np.argpartition(keys, self.size)[: self.size]).astype(np.int64)


class ShuffledSampler(IndexSampler):
    """Epochs of ``period`` steps; every index falls into one independently drawn step of each epoch.

    Drawing each index's step independently (balls into bins; Chua et al. 2024, arXiv 2412.16802) instead of
    cutting a permutation keeps the other indices where they are when one is added or removed, so the
    guarantee also holds for the add-remove relation. Batches are ragged, n / period on average.
    """

    def __init__(self, n: int, period: int, source: NoiseSource = SYSTEM) -> None:
        self.n, self.period, self._source = _count(n), _period(period), source
        self.expected = n / period
        self._step = 0
        self._bins = self._assign(np.empty(0, dtype=np.uint64))

    def draw(self) -> Indices:
        """See :meth:`IndexSampler.draw`."""
        if self._step % self.period == 0:
            self._bins = self._assign(self._source.words(self.n))
        batch = np.flatnonzero(self._bins == self._step % self.period).astype(np.int64)
        self._step += 1
        return batch

    def _assign(self, words: npt.NDArray[np.uint64]) -> Indices:
        # The top 32 bits times the period, shifted back: uniform over the steps within period 2^-32.
        return (((words >> np.uint64(32)) * np.uint64(self.period)) >> np.uint64(32)).astype(np.int64)


class CyclicSampler(ShuffledSampler):
    """Like ShuffledSampler, but steps are assigned once from ``key``: participations of an index are exactly
    ``period`` steps apart, in this process and the next, which is what banded noise needs.

    The assignment need not be secret; no amplification is claimed. ``start`` is the number of steps already
    made in earlier rounds.
    """

    def __init__(self, n: int, period: int, key: bytes, start: int = 0) -> None:
        super().__init__(n, period)
        self._bins = self._assign(key_stream(hashlib.sha256(b"umbel cyclic order" + key).digest(), n))
        self._step = start

    def draw(self) -> Indices:
        """See :meth:`IndexSampler.draw`."""
        batch = np.flatnonzero(self._bins == self._step % self.period).astype(np.int64)
        self._step += 1
        return batch


class FullSampler(IndexSampler):
    """Every index every step."""

    def __init__(self, n: int) -> None:
        self.n, self.expected = _count(n), float(n)

    def draw(self) -> Indices:
        """See :meth:`IndexSampler.draw`."""
        return np.arange(self.n, dtype=np.int64)


def sampler_for(plan: PrivacyPlan, *, key: bytes = b"", start: int = 0, source: NoiseSource = SYSTEM) -> IndexSampler:
    """The sampler that the plan names, over the plan's population. Divide sums by its ``expected``.

    Args:
        plan: what is promised; its population must be known.
        key: fixes the cyclic order, the same in every round of a run (for example the run's id and the data set's).
        start: steps made in earlier rounds; only the cyclic order needs it.
        source: where randomness comes from: the sample must be secret for amplification to hold.

    Raises:
        PlanError: the plan does not know its population.
    """
    if plan.population is None:
        raise PlanError("A sampler needs the number of units, but the plan has no population: build it with one.")
    n, q = plan.population, plan.sampling_rate
    match plan.sampler:
        case Sampler.POISSON:
            return PoissonSampler(n, q, source)
        case Sampler.FIXED_SIZE:
            # Accounted at rate q, so the size is rounded down (up to the rounding of q itself).
            return FixedSizeSampler(n, math.floor(q * n + 1e-9), source)
        case Sampler.SHUFFLED:
            return ShuffledSampler(n, plan.period, source)
        case Sampler.CYCLIC:
            return CyclicSampler(n, plan.period, key, start)
        case Sampler.FULL:
            return FullSampler(n)


def _count(n: int) -> int:
    if n < 0:
        raise PlanError(f"A data set of {n} units cannot be sampled: expected at least 0, give its size.")
    return n


def _period(period: int) -> int:
    if period < 1:
        raise PlanError(f"An epoch of {period} steps was asked for, expected at least 1: lower the batch size.")
    return period
