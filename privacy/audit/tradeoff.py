"""Trade-off functions of claimed mechanisms, in the form that the one-run audit needs.

For a trade-off function f (Dong et al. 2022) the audit uses the blow-up function 1 - f(x): the largest probability
that an event of probability x under one of two neighbouring data sets can have under the other, and its inverse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from umbel.errors import PrivacyError


class TradeOff(ABC):
    """A symmetric trade-off function, by the inverse of its blow-up function."""

    @abstractmethod
    def inverse(self, probability: float) -> float:
        """The least x with blow-up(x) >= ``probability``: 0 for 0, non-decreasing, at most ``probability``."""

    @abstractmethod
    def epsilon(self, delta: float) -> float:
        """The epsilon that the claim means at ``delta``; inf when it means none."""


@dataclass(frozen=True)
class GaussianTradeOff(TradeOff):
    """mu-Gaussian DP: the exact curve of a Gaussian mechanism whose sensitivity is mu standard deviations.

    Exact for T steps over the full batch (mu = sqrt(T) / noise multiplier); *not* for subsampled steps.
    """

    mu: float

    def inverse(self, probability: float) -> float:
        """Phi(Phi^-1(p) - mu)."""
        return float(norm.cdf(norm.ppf(min(max(probability, 0.0), 1.0)) - self.mu))

    def epsilon(self, delta: float) -> float:
        """Dong et al. 2022, corollary 2.13, solved for epsilon."""
        if self.mu <= 0:
            return 0.0

        def excess(epsilon: float) -> float:
            high = norm.cdf(-epsilon / self.mu + self.mu / 2)
            log_low = epsilon + norm.logcdf(-epsilon / self.mu - self.mu / 2)
            return float(high - math.exp(log_low) - delta)

        if excess(0.0) <= 0:
            return 0.0
        top = 1.0
        while excess(top) > 0:
            top *= 2
        return float(brentq(excess, 0.0, top))


@dataclass(frozen=True)
class CurveTradeOff(TradeOff):
    """The trade-off function implied by (epsilon, delta) pairs that all hold, for both directions.

    One pair is plain (epsilon, delta)-DP; many pairs of a privacy loss distribution approach the mechanism's own curve
    from below, so an audit against it never rejects a sound mechanism more often than its level.
    """

    epsilons: tuple[float, ...]
    deltas: tuple[float, ...]
    exact: Callable[[float], float] | None = field(default=None, compare=False)
    """Epsilon at a delta, where it is known better than by the listed pairs."""

    def __post_init__(self) -> None:
        good = len(self.epsilons) == len(self.deltas) > 0
        if not good or min(self.epsilons) < 0 or not all(0 <= delta <= 1 for delta in self.deltas):
            raise PrivacyError(
                f"A claim of epsilons {self.epsilons[:3]} and deltas {self.deltas[:3]} is no privacy curve: give "
                "epsilons of at least 0, each with a delta in [0, 1]."
            )

    @cached_property
    def _lines(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Slopes and intercepts whose pointwise minimum is the blow-up function."""
        slope = np.exp(np.minimum(np.array(self.epsilons), 600.0))
        delta = np.array(self.deltas)
        return np.concatenate([slope, 1 / slope]), np.concatenate([delta, 1 - (1 - delta) / slope])

    def inverse(self, probability: float) -> float:
        """The largest of the lines' inverses, at least 0."""
        slope, intercept = self._lines
        return float(np.clip(((probability - intercept) / slope).max(), 0.0, 1.0))

    def epsilon(self, delta: float) -> float:
        """The exact epsilon where known, else the least listed one whose delta is at most ``delta``."""
        if self.exact is not None:
            return float(self.exact(delta))
        return min((e for e, d in zip(self.epsilons, self.deltas, strict=True) if d <= delta), default=math.inf)


def check_dp_sgd(noise_multiplier: float, sampling_rate: float, steps: int) -> None:
    """Raises PrivacyError when the three describe no run of DP-SGD."""
    if not (0 < noise_multiplier < math.inf and 0 < sampling_rate <= 1 and steps >= 1):
        raise PrivacyError(
            f"Noise multiplier {noise_multiplier}, sampling rate {sampling_rate} and {steps} steps are no DP-SGD: "
            "expected a positive number, a rate in (0, 1] and at least one step."
        )


def dp_sgd_trade_off(noise_multiplier: float, sampling_rate: float, steps: int, points: int = 120) -> TradeOff:
    """The claim of DP-SGD with Poisson sampling, add/remove one example.

    Args:
        noise_multiplier: standard deviation of the noise over the clipping norm, positive.
        sampling_rate: in (0, 1]; 1 gives the exact Gaussian curve.
        steps: at least 1.
        points: how many points of the privacy loss distribution's curve are read (dp-accounting's PLD, pessimistic).

    Raises:
        PrivacyError: a value outside its range.
    """
    check_dp_sgd(noise_multiplier, sampling_rate, steps)
    if sampling_rate == 1:
        return GaussianTradeOff(math.sqrt(steps) / noise_multiplier)
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    step = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_event.SelfComposedDpEvent(step, steps))
    top = max(float(accountant.get_epsilon(1e-9)), 1e-2)
    epsilons: Sequence[float] = np.concatenate([[0.0], np.geomspace(top / 1000, top, points - 1)]).tolist()
    deltas = tuple(min(1.0, float(accountant.get_delta(e))) for e in epsilons)
    return CurveTradeOff(tuple(epsilons), deltas, accountant.get_epsilon)
