"""Clipping of whole updates: the contribution of one client, bounded before it is summed.

| update | result |
|---|---|
| zero | zero |
| norm at most C | unchanged, bit for bit |
| norm above C | scaled to C (1 - 2^-22), so that rounding to float32 cannot exceed C |
| a value not finite | PrivacyError |
| empty | unchanged |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.noise import SYSTEM, NoiseSource, normal
from privacy.plan import Clipping, PrivacyPlan, Relation
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import PlanError, PrivacyError

if TYPE_CHECKING:
    from umbel.config import PrivacyConfig

_MARGIN = 1 - 2.0**-22


@dataclass(frozen=True, slots=True)
class Clipped:
    """A bounded update.

    Attributes:
        vector: float32, a new array unless nothing was changed.
        norm: L2 norm before clipping, never to be released as it is.
        within: the update was left whole.
    """

    vector: Vector
    norm: float
    within: bool


class UpdateClipper(ABC):
    """Bounds one client's contribution to the sum."""

    norm: float
    """C: largest L2 norm of a clipped update."""

    def sensitivity(self, relation: Relation) -> float:
        """L2 distance by which one client moves the sum of clipped updates: C, or 2 C under replace-one."""
        return self.norm * (2.0 if relation is Relation.REPLACE_ONE else 1.0)

    def noise_std(self, plan: PrivacyPlan) -> float:
        """Absolute standard deviation of the noise on the sum of clipped updates."""
        return plan.noise_std()

    def clip(self, update: Vector) -> Clipped:
        """Bounds ``update`` (float32 [size]); see the table above.

        Raises:
            PrivacyError: a value is not finite, or the dtype is not float32: such an update must be dropped.
        """
        if update.dtype != np.float32 or update.ndim != 1 or not bool(np.isfinite(update).all()):
            raise PrivacyError(
                f"An update of dtype {update.dtype} and shape {update.shape} cannot be clipped: expected a float32 "
                "vector of finite values; drop this update and lower the client's learning rate."
            )
        return self._clip(update)

    @abstractmethod
    def _clip(self, update: Vector) -> Clipped: ...


class FlatClipper(UpdateClipper):
    """Scales the whole update to norm ``norm`` (McMahan et al. 2018, section 3)."""

    def __init__(self, norm: float) -> None:
        self.norm = _positive(norm)

    def _clip(self, update: Vector) -> Clipped:
        norm = _norm(update)
        if norm <= self.norm:
            return Clipped(update, norm, True)
        return Clipped(_scaled(update, self.norm, norm), norm, False)


class PerLayerClipper(UpdateClipper):
    """Clips every tensor on its own, each to ``norm`` / sqrt(number of tensors), so that the whole obeys ``norm``.

    Source: McMahan et al. 2018, section 3 ("per-layer clipping").
    """

    def __init__(self, norm: float, spec: AdapterSpec) -> None:
        if not spec.tensors:
            raise PlanError(
                "Per-layer clipping needs at least one tensor, but the adapter is empty: check lora.targets."
            )
        self.norm, self.spec = _positive(norm), spec

    def _clip(self, update: Vector) -> Clipped:
        self.spec.check_length(update)
        bound = self.norm / math.sqrt(len(self.spec.tensors))
        result, within = update.copy(), True
        for part in self.spec.views(result).values():
            size = _norm(part)
            if size > bound:
                part[...] = _scaled(part, bound, size)
                within = False
        return Clipped(result, _norm(update), within)


class AdaptiveClipper(FlatClipper):
    """A flat norm that follows a quantile of the updates' norms.

    Source: Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1. Each client
    also contributes b - 1/2, with b = 1 if its update was within the norm; the sum of these gets Gaussian noise of
    deviation ``quantile_noise``. Theorem 1: update noise of multiplier (z^-2 - z_b^-2)^(-1/2) together with the
    indicator's multiplier z_b costs exactly as much as one Gaussian of multiplier z, which is what the plan says and
    the ledger books.
    """

    def __init__(self, norm: float, *, quantile: float = 0.5, rate: float = 0.2, quantile_noise: float = 2.0) -> None:
        super().__init__(norm)
        if not (0 < quantile < 1 and rate > 0 and quantile_noise > 0 and math.isfinite(rate * quantile_noise)):
            raise PlanError(
                f"Adaptive clipping has quantile {quantile}, rate {rate} and noise {quantile_noise}: expected a "
                "quantile between 0 and 1 and finite numbers above 0."
            )
        self.quantile, self.rate, self.quantile_noise = quantile, rate, quantile_noise

    def noise_std(self, plan: PrivacyPlan) -> float:
        """Deviation of the noise on the sum of updates clipped to the *present* norm: a little more than z C.

        Raises:
            PlanError: the indicator's noise is so small that it alone would cost more than the plan.
        """
        z = plan.noise_multiplier
        of_indicator = self.quantile_noise / (0.5 * plan.sensitivity() / plan.clipping_norm)
        if of_indicator <= z:
            raise PlanError(
                f"quantile-noise {self.quantile_noise:g} alone would cost more than the plan's multiplier {z:.3g}: "
                f"set privacy.quantile-noise well above {z * 0.5 * plan.sensitivity() / plan.clipping_norm:.3g}."
            )
        return self.sensitivity(plan.relation) / math.sqrt(z**-2 - of_indicator**-2)

    def update(self, within: int, arrived: int, expected: float, source: NoiseSource = SYSTEM) -> float:
        """Moves the norm by what the cohort's indicators say; returns the new norm.

        Args:
            within: number of arrived updates that were within the norm (their exact count: it is noised here).
            arrived: number of arrived updates.
            expected: public expected size of the cohort; the divisor.
            source: where noise comes from.

        Raises:
            PrivacyError: counts that cannot be.
        """
        if not (0 <= within <= arrived and expected > 0):
            raise PrivacyError(
                f"{within} updates of {arrived} within the norm, expected cohort {expected}: counts must be at least "
                "0, and no more can be within than arrived."
            )
        noised = within - 0.5 * arrived + self.quantile_noise * float(normal(1, source)[0])
        share = min(max(noised / expected + 0.5, 0.0), 1.0)
        self.norm *= math.exp(-self.rate * (share - self.quantile))
        return self.norm


def clipper_for(plan: PrivacyPlan, config: PrivacyConfig, spec: AdapterSpec) -> UpdateClipper:
    """The clipper that the plan names, at the plan's norm; ``spec`` is the layout of the upload."""
    if plan.clipping is Clipping.PER_LAYER:
        return PerLayerClipper(plan.clipping_norm, spec)
    if plan.clipping is Clipping.ADAPTIVE:
        return AdaptiveClipper(
            plan.clipping_norm,
            quantile=config.quantile,
            rate=config.quantile_rate,
            quantile_noise=config.quantile_noise,
        )
    return FlatClipper(plan.clipping_norm)


def _norm(values: Vector) -> float:
    """L2 norm, accumulated in float64."""
    return math.sqrt(float(np.sum(np.square(values, dtype=np.float64))))


def _scaled(values: Vector, target: float, norm: float) -> Vector:
    return (values * np.float64(target * _MARGIN / norm)).astype(np.float32)


def _positive(norm: float) -> float:
    if not (math.isfinite(norm) and norm > 0):
        raise PlanError(f"A clipping norm is {norm}, expected a finite number above 0: set privacy.clipping-norm.")
    return norm
