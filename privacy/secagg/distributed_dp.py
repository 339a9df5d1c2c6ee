"""Distributed differential privacy: every client adds integer noise before masking; only the sum is released.

Sources: Kairouz, Liu and Steinke 2021 (2102.06387; discrete Gaussian, rotation, conditional rounding),
Agarwal, Kairouz and Liu 2021 (2110.04995; Skellam).

Guarantee: with n_C colluding clients and at least m_min survivors, the sum holds noise of variance at least
(z c s)^2 that no colluder knows, whoever drops out: each client's share is (z c s)^2 / (m_min - n_C), and both
numbers are enforced by the honest client, which helps to unmask no smaller set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event, LatticeEncoding
from privacy.noise import SYSTEM, NoiseSource, discrete_gaussian, skellam
from privacy.terms import Mechanism, Relation
from umbel.errors import SecAggError

BETA = math.exp(-0.5)
"""Conditional rounding repeats a rounding whose norm is improbably large; this bounds how often."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """How much noise each client adds.

    Attributes:
        multiplier: z, total standard deviation over the clipping norm c; positive and finite.
        minimum: m_min, fewest survivors of a sum that is ever unmasked.
        corrupt: n_C, survivors whose noise the adversary may know.
        mechanism: Skellam is closed under sums; sums of discrete Gaussians carry a (tiny) extra term.
    """

    multiplier: float
    minimum: int
    corrupt: int
    mechanism: Literal["skellam", "discrete-gaussian"] = "skellam"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.multiplier) and self.multiplier > 0):
            raise SecAggError(f"The noise multiplier {self.multiplier} is not a positive finite number: calibrate it.")
        if not 0 <= self.corrupt < self.minimum:
            raise SecAggError(
                f"With {self.minimum} survivors and {self.corrupt} of them corrupt nobody's noise protects the sum: "
                "raise secagg.minimum or lower secagg.corrupt."
            )

    def local_variance(self, clip: float, scale: float) -> float:
        """Variance of one client's noise, in squared quantization steps."""
        return (self.multiplier * clip * scale) ** 2 / (self.minimum - self.corrupt)

    def draw(self, size: int, clip: float, scale: float, source: NoiseSource = SYSTEM) -> npt.NDArray[np.int64]:
        """One client's noise, int64, mean 0."""
        variance = self.local_variance(clip, scale)
        return (
            skellam(size, variance, source)
            if self.mechanism == "skellam"
            else discrete_gaussian(size, math.sqrt(variance), source)
        )

    def lattice(self, dimension: int, scale: float) -> LatticeEncoding:
        """The sensitivities of the rounded vector of ``dimension`` values."""
        return LatticeEncoding(dimension, scale, BETA, shares=self.minimum - self.corrupt)

    def event(
        self,
        dimension: int,
        clip: float,
        scale: float,
        *,
        relation: Relation = Relation.ADD_REMOVE,
        steps: int = 1,
    ) -> Event:
        """What ``steps`` sums cost, whoever survived: the ledger books this for every sum that was unmasked.

        Args:
            dimension: values of the encoded vector, padding included.
            clip: c.
            scale: s.
            relation: neighbouring relation between cohorts, of one client's whole contribution.
            steps: sums released.
        """
        mechanism = Mechanism.SKELLAM if self.mechanism == "skellam" else Mechanism.DISCRETE_GAUSSIAN
        # The event's multiplier is over the sensitivity of the relation, ours over the clipping norm.
        multiplier = self.multiplier / (2.0 if relation is Relation.REPLACE_ONE else 1.0)
        return self.lattice(dimension, scale).event(mechanism, multiplier, clip, relation=relation, steps=steps)


def conditional_round(
    values: npt.NDArray[np.float32], factor: float, clip: float, source: NoiseSource = SYSTEM
) -> npt.NDArray[np.int64]:
    """Stochastic rounding of ``values * factor``, repeated until the norm is within the stated sensitivity.

    Kairouz et al. 2021, algorithm 1. Conditioning makes the rounding very slightly biased (it discards at most a
    fraction beta of the roundings).

    Args:
        values: float32 with L2 norm at most ``clip``; none gives none.
        factor: s, quantization steps a unit.
        clip: c.
        source: randomness.

    Returns:
        int64 whose L2 norm is at most ``LatticeEncoding(len(values), factor).l2(clip)``.

    Raises:
        SecAggError: 1000 roundings failed, which for a clipped vector has probability beta^1000.
    """
    limit = LatticeEncoding(max(1, len(values)), factor, BETA).l2(clip) ** 2
    out = np.empty(len(values), dtype=np.int64)
    for _ in range(1000):
        total = 0.0
        for start in range(0, len(values), _CHUNK):
            exact = values[start : start + _CHUNK].astype(np.float64) * factor
            whole = np.floor(exact)
            whole += source.uniform(len(exact)) < exact - whole
            total += float(np.dot(whole, whole))
            out[start : start + _CHUNK] = whole
        if total <= limit:
            return out
    raise SecAggError("Rounding never came within the sensitivity: clip the vector to the clipping norm first.")


def tail(variance: float, log_failure: float) -> float:
    """A sum of integer noise of ``variance`` exceeds this with probability at most 2 exp(-log_failure).

    Bernstein's form: both mechanisms have log moment generating functions of at most
    variance * (cosh t - 1) <= variance t^2 / (2 (1 - t / 3)).
    """
    return log_failure / 3.0 + math.sqrt(log_failure * log_failure / 9.0 + 2.0 * log_failure * variance)
