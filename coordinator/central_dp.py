"""CentralMechanism: client-level differential privacy at a trusted coordinator (McMahan et al. 2018)."""

from __future__ import annotations

import numpy as np

from coordinator.accumulator import ExactAccumulator
from privacy.client_clipping import AdaptiveClipper, clipper_for
from privacy.noise.gaussian import add_gaussian_
from privacy.plan import PrivacyPlan
from umbel.adapter import AdapterSpec, Vector
from umbel.config import RunConfig


class CentralMechanism:
    """Clips whole updates, noises their sum and divides by the public expected size of a cohort.

    Formal guarantee (of the plan's unit and relation): the released mean is a Gaussian mechanism on a sum in which
    one client counts for at most the clipping norm; rounding each addend to the accumulator's grid moves that norm by
    less than 1e-9 of itself for the adapters that fit in memory. The divisor never depends on who answered.

    Args:
        plan: of the client unit at the place ``coordinator``.
        config: of the run.
        upload: layout of the uploads.
    """

    def __init__(self, plan: PrivacyPlan, config: RunConfig, upload: AdapterSpec) -> None:
        self._plan = plan
        self._clipper = clipper_for(plan, config.privacy, upload)
        federation = config.federation
        self._expected = float(federation.clients if federation.cohort == "all" else federation.cohort_size)
        self._within = self._arrived = 0

    @property
    def clipping_norm(self) -> float:
        """The present norm: it moves when clipping is adaptive, and is a private release itself."""
        return self._clipper.norm

    @clipping_norm.setter
    def clipping_norm(self, value: float) -> None:
        self._clipper.norm = value

    def clip(self, update: Vector) -> Vector:
        """One client's bounded contribution.

        Raises:
            PrivacyError: a value is not finite: the update must be dropped.
        """
        clipped = self._clipper.clip(update)
        self._arrived += 1
        self._within += clipped.within
        return clipped.vector

    def release(self, accumulator: ExactAccumulator) -> Vector:
        """The noised mean of the round; with an empty cohort the noise alone."""
        total = accumulator.total().astype(np.float32)
        add_gaussian_(total, self._clipper.noise_std(self._plan))
        if isinstance(self._clipper, AdaptiveClipper):
            self._clipper.update(self._within, self._arrived, self._expected)
        self._within = self._arrived = 0
        return total / np.float32(self._expected)
