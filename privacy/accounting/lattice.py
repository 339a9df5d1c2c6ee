"""Distributed DP on the integer lattice: sensitivities after rounding, and the divergence of the noise.

Sources: Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning"
(divergence); Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning
with Secure Aggregation", theorem 1 (sums of discrete Gaussians) and conditional rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privacy.accounting.event import Event
from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError

_NO_GUARANTEE = 1e6


@dataclass(frozen=True, slots=True)
class LatticeEncoding:
    """How a clipped float vector becomes integers before integer noise is added by several clients.

    Attributes:
        dimension: length of the encoded vector (after padding for the rotation).
        scale: integers per unit of the clipped vector.
        beta: the conditional rounding's parameter, e^-1/2 by default: rounding is repeated until the norm obeys
            :meth:`l2`, which one attempt does with probability at least 1 - beta.
        shares: fewest honest survivors that add noise; only sums of discrete Gaussians depend on it.
    """

    dimension: int
    scale: float
    beta: float = math.exp(-0.5)
    shares: int = 1

    def __post_init__(self) -> None:
        if (
            self.dimension < 1
            or not (math.isfinite(self.scale) and self.scale > 0)
            or not 0 < self.beta < 1
            or self.shares < 1
        ):
            raise PlanError(
                f"A lattice encoding has dimension {self.dimension}, scale {self.scale}, beta {self.beta} and "
                f"{self.shares} shares: expected at least 1, a finite number above 0, a probability and at least 1; "
                "check the secure aggregation parameters."
            )

    def l2(self, clipping_norm: float) -> float:
        """L2 sensitivity of the rounded vector, in lattice units, for add-remove."""
        c, d = clipping_norm * self.scale, float(self.dimension)
        root = math.sqrt(d)
        conditional = c * c + d / 4 + math.sqrt(2 * math.log(1 / self.beta)) * (c + root / 2)
        return math.sqrt(min((c + root) ** 2, conditional))

    def l1(self, clipping_norm: float) -> float:
        """L1 sensitivity, in lattice units, for add-remove: integers have |k| <= k^2."""
        l2 = self.l2(clipping_norm)
        return min(math.sqrt(self.dimension) * l2, l2 * l2)

    def event(
        self,
        mechanism: Mechanism,
        noise_multiplier: float,
        clipping_norm: float,
        *,
        relation: Relation = Relation.ADD_REMOVE,
        steps: int = 1,
    ) -> Event:
        """``steps`` sums with total noise of standard deviation ``noise_multiplier`` x sensitivity x scale.

        Args:
            mechanism: SKELLAM or DISCRETE_GAUSSIAN.
            noise_multiplier: over the sensitivity (C, or 2 C for replace-one) before encoding.
            clipping_norm: C.
            relation: neighbouring relation.
            steps: number of sums released.

        Raises:
            PlanError: another mechanism.
        """
        factor = 2.0 if relation is Relation.REPLACE_ONE else 1.0
        std = noise_multiplier * factor * clipping_norm * self.scale
        l1, l2 = factor * self.l1(clipping_norm), factor * self.l2(clipping_norm)
        if mechanism is Mechanism.DISCRETE_GAUSSIAN:
            # Concentrated DP epsilon^2/2 is what a Gaussian of multiplier 1/epsilon has.
            noise_multiplier, l1, l2, variance = 1 / self._concentrated(l2, std), 0.0, 0.0, 0.0
        elif mechanism is Mechanism.SKELLAM:
            variance = std * std
        else:
            raise PlanError(f"Noise {mechanism.value} does not live on integers: use skellam or discrete-gaussian.")
        return Event(
            mechanism,
            Sampler.FULL,
            relation,
            noise_multiplier,
            participations=steps,
            steps=steps,
            l1=l1,
            l2=l2,
            variance=variance,
        )

    def _concentrated(self, l2: float, std: float) -> float:
        """The concentrated-DP parameter of a sum of ``shares`` discrete Gaussians of total deviation ``std``.

        The theorem asks for shares of deviation 1/2 at least; narrower ones get a parameter that no budget meets.
        """
        share = std * std / self.shares
        if share < 0.25:
            return _NO_GUARANTEE
        ratio = np.arange(1, self.shares, dtype=np.float64)
        gap = 10 * float(np.exp(-2 * math.pi**2 * share * ratio / (ratio + 1)).sum())
        return min(
            math.sqrt((l2 / std) ** 2 + gap * self.dimension / 2),
            l2 / std + gap * math.sqrt(self.dimension),
        )


def skellam_rdp(order: float, l1: float, l2: float, variance: float) -> float:
    """Rényi divergence of order ``order`` between shifted Skellam vectors; infinite unless an integer above 1."""
    if order < 2 or not float(order).is_integer():
        return math.inf
    first = order * l2 * l2 / (2 * variance)
    second = ((2 * order - 1) * l2 * l2 + 6 * l1) / (4 * variance * variance)
    return first + min(second, 3 * l1 / (2 * variance))
