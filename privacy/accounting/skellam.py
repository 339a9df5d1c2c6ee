"""The Skellam mechanism of distributed DP: lattice sensitivities and Rényi divergence.

Source: Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning",
corollary 4.1 (divergence) and section 5 (rounding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from privacy.accounting.event import Event
from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError


@dataclass(frozen=True, slots=True)
class SkellamEncoding:
    """How a clipped float vector becomes integers before Skellam noise is added.

    Attributes:
        dimension: length of the encoded vector (after padding for the rotation).
        scale: integers per unit of the clipped vector.
        beta: probability with which conditional stochastic rounding may be repeated away; e^-1/2 by default.
    """

    dimension: int
    scale: float
    beta: float = math.exp(-0.5)

    def __post_init__(self) -> None:
        if self.dimension < 1 or not (math.isfinite(self.scale) and self.scale > 0) or not 0 < self.beta < 1:
            raise PlanError(
                f"A Skellam encoding has dimension {self.dimension}, scale {self.scale} and beta {self.beta}: expected "
                "at least 1, a finite number above 0 and a probability; check the secure aggregation parameters."
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
        noise_multiplier: float,
        clipping_norm: float,
        *,
        relation: Relation = Relation.ADD_REMOVE,
        steps: int = 1,
    ) -> Event:
        """``steps`` sums with total noise of standard deviation ``noise_multiplier`` x sensitivity x scale.

        Args:
            noise_multiplier: over the sensitivity (C, or 2 C for replace-one) before encoding.
            clipping_norm: C.
            relation: neighbouring relation.
            steps: number of sums released.
        """
        factor = 2.0 if relation is Relation.REPLACE_ONE else 1.0
        std = noise_multiplier * factor * clipping_norm * self.scale
        return Event(
            Mechanism.SKELLAM,
            Sampler.FULL,
            relation,
            noise_multiplier,
            participations=steps,
            steps=steps,
            l1=factor * self.l1(clipping_norm),
            l2=factor * self.l2(clipping_norm),
            variance=std * std,
        )


def skellam_rdp(order: float, l1: float, l2: float, variance: float) -> float:
    """Rényi divergence of order ``order`` between shifted Skellam vectors; infinite unless an integer above 1."""
    if order < 2 or not float(order).is_integer():
        return math.inf
    first = order * l2 * l2 / (2 * variance)
    second = ((2 * order - 1) * l2 * l2 + 6 * l1) / (4 * variance * variance)
    return first + min(second, 3 * l1 / (2 * variance))
