"""Rényi divergences of one release, at a fixed set of orders, cached by kind of event."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from privacy.accounting.event import Event
from privacy.accounting.lattice import skellam_rdp
from privacy.terms import Mechanism, Relation, Sampler

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 20)),
    *(float(x) for x in range(3, 65)),
    *(float(x) for x in (72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024)),
)
Curve = npt.NDArray[np.float64]


@lru_cache(maxsize=4096)
def rdp(kind: Event) -> Curve:
    """Rényi divergence of one release of ``kind`` at every order of ORDERS; infinite where no bound is known.

    Banded noise is one Gaussian release (Denisov et al. 2022, theorem 2.1). A sum of discrete
    Gaussians carries its concentrated-DP parameter in ``noise_multiplier`` (see LatticeEncoding).
    """
    orders = np.asarray(ORDERS)
    if kind.mechanism is Mechanism.SKELLAM:
        return np.array([skellam_rdp(order, kind.l1, kind.l2, kind.variance) for order in ORDERS])
    if kind.sampling_rate == 1:
        gaussian: Curve = orders / (2 * kind.noise_multiplier**2)
        return gaussian
    if kind.sampler is Sampler.FIXED_SIZE:
        return _fixed_size(kind.noise_multiplier, kind.sampling_rate)
    if kind.relation is Relation.REPLACE_ONE:
        return _poisson_replace(kind.noise_multiplier, kind.sampling_rate)
    return _poisson(kind.noise_multiplier, kind.sampling_rate)


def _poisson(noise_multiplier: float, q: float) -> Curve:
    """Mironov, Talwar and Zhang 2019, section 3.3, at integer orders; between them the cumulant generating
    function (order - 1) x divergence is convex, so its chord is an upper bound (Wang et al. 2019, corollary 10)."""
    whole = np.unique([order for order in ORDERS if order.is_integer()] + [2.0])
    cumulant = [0.0]
    for order in whole:
        i = np.arange(order + 1)
        logs = gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)
        logs += i * np.log(q) + (order - i) * np.log1p(-q) + (i * i - i) / (2 * noise_multiplier**2)
        cumulant.append(max(0.0, float(logsumexp(logs))))
    orders = np.asarray(ORDERS)
    curve: Curve = np.interp(orders, np.concatenate([[1.0], whole]), cumulant) / (orders - 1)
    return curve


def _fixed_size(noise_multiplier: float, q: float) -> Curve:
    """Sampling without replacement, replace-one: Wang, Balle and Kasiviswanathan 2019, theorem 27 (long version)."""
    import dp_accounting
    from dp_accounting import rdp as library

    # Only the quotient of the two sizes enters.
    event = dp_accounting.SampledWithoutReplacementDpEvent(1.0, q, dp_accounting.GaussianDpEvent(noise_multiplier))
    # The bound takes quadratic time in the order, so a subset of the orders has to do.
    few = [order for order in ORDERS if order.is_integer() and (order <= 24 or order in (32, 48, 64))]
    accountant = library.RdpAccountant(few, dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(event)
    found = dict(zip(few, accountant.rdp, strict=True))
    return np.array([found.get(order, np.inf) for order in ORDERS], dtype=np.float64)


def _poisson_replace(noise_multiplier: float, q: float) -> Curve:
    """Poisson sampling under replace-one, by quadrature of the dominating pair.

    With noise of unit sensitivity 2 C the pair is (1-q) N(0) + q N(-1/2) against (1-q) N(0) + q N(+1/2).
    The integrand is analytic and decays like a Gaussian, so the trapezoid rule converges exponentially.
    """
    highest = 64.0
    reach = 0.5 * highest + 12 * noise_multiplier
    x = np.linspace(-reach, reach, 2 * math.ceil(20 * reach / noise_multiplier) + 1)
    density = -0.5 * (x / noise_multiplier) ** 2 - np.log(noise_multiplier * np.sqrt(2 * np.pi))
    shift = x / (2 * noise_multiplier**2) - 1 / (8 * noise_multiplier**2)
    mirrored = -x / (2 * noise_multiplier**2) - 1 / (8 * noise_multiplier**2)
    upper = density + np.logaddexp(np.log1p(-q), np.log(q) + mirrored)
    lower = density + np.logaddexp(np.log1p(-q), np.log(q) + shift)
    curve = []
    for order in ORDERS:
        if order > highest:
            curve.append(np.inf)
            continue
        logs = order * upper + (1 - order) * lower
        integral = float(logsumexp(logs)) + math.log(x[1] - x[0])
        # The mode moves outwards with the order; at the border the quadrature would miss mass.
        edge = max(logs[0], logs[-1]) > logs.max() - 60
        curve.append(np.inf if edge else max(0.0, integral) / (order - 1))
    return np.array(curve)
