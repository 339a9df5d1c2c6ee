"""Integer noise: Skellam and discrete Gaussian, for sums that live in a finite group (secure aggregation).

Integers have no floating-point structure to attack; what remains is how near the probabilities are. Both
samplers compare 53- or 64-bit uniforms with float64 probabilities: where an outcome has probability above
2^-40 its probability is right within a relative error of about 2^-40 / max(1, 2^-40 mu) (rounding of the log
density), and all outcomes beyond carry less than 2^-38 together. The error does not depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import gammainc, gammaln

from privacy.noise.source import SYSTEM, NoiseSource
from umbel.errors import PrivacyError

Integers = npt.NDArray[np.int64]
_TILE = 1 << 16
_SMALL = 10.0
"""Below this mean a table of the distribution function is exact and faster than rejection."""
_LARGEST = 2.0**60


def skellam(size: int, mu: float, source: NoiseSource = SYSTEM) -> Integers:
    """``size`` independent Skellam values: differences of two Poisson variables with mean ``mu`` / 2 each.

    Args:
        size: number of values, 0 gives an empty array.
        mu: the *variance* (Agarwal et al. 2021 write Sk(0, mu) with variance mu); 0 gives zeros.
        source: where randomness comes from.

    Returns:
        int64 vector with mean 0 and variance ``mu``; sums of m independent ones are Skellam of variance m mu.

    Raises:
        PrivacyError: ``mu`` negative, NaN or above 2^60, or ``size`` negative.
    """
    _check(size, mu, "A Skellam variance")
    if mu == 0:
        return np.zeros(size, dtype=np.int64)
    return poisson(size, mu / 2, source) - poisson(size, mu / 2, source)


def discrete_gaussian(size: int, sigma: float, source: NoiseSource = SYSTEM) -> Integers:
    """``size`` independent discrete Gaussian values: P(k) proportional to exp(-k^2 / (2 sigma^2)).

    Rejection from a discrete Laplace (Canonne, Kamath and Steinke 2020, algorithm 3), vectorised.

    Args:
        size: number of values, 0 gives an empty array.
        sigma: the scale; the variance is sigma^2 up to 1e-8 once sigma > 1, less below; 0 gives zeros.
        source: where randomness comes from.

    Raises:
        PrivacyError: ``sigma`` negative, NaN or above 2^30, or ``size`` negative.
    """
    _check(size, sigma * abs(sigma), "A discrete Gaussian variance")
    if sigma == 0:
        return np.zeros(size, dtype=np.int64)
    scale = math.floor(sigma) + 1

    def draw(count: int) -> Integers:
        laplace = _discrete_laplace(count, scale, source)
        gap = (np.abs(laplace) - sigma * sigma / scale) / sigma
        keep: Integers = laplace[source.uniform(len(laplace)) < np.exp(-0.5 * gap * gap)]
        return keep

    return _fill(size, draw)


def poisson(size: int, mean: float, source: NoiseSource = SYSTEM) -> Integers:
    """``size`` independent Poisson values: table below mean 10, transformed rejection (PTRS) above.

    Source: Hörmann 1993, "The transformed rejection method for generating Poisson random variables".
    """
    if mean < _SMALL:
        counts = np.arange(1, 90)
        tail = gammainc(counts, mean)  # P(X >= count), the regularised lower incomplete gamma function
        return _fill(size, lambda n: np.searchsorted(-tail, -source.uniform(n), side="right").astype(np.int64))
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    scale = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)

    def draw(count: int) -> Integers:
        # Box "u", height "v" of the transformed hat; most points fall under the squeeze and need no density.
        uniform = source.uniform(2 * count)
        u, v = uniform[:count] - 0.5, uniform[count:]
        edge = 0.5 - np.abs(u)
        k = np.floor((2 * a / edge + b) * u + mean + 0.43)
        sure = (edge >= 0.07) & (v <= squeeze)
        open_ = ~sure & (k >= 0) & ((edge >= 0.013) | (v <= edge))
        at = np.flatnonzero(open_)
        height = np.log(v[at] * scale / (a / (edge[at] * edge[at]) + b))
        sure[at] = height <= _log_poisson(k[at], mean)
        keep: Integers = k[sure].astype(np.int64)
        return keep

    return _fill(size, draw)


def _log_poisson(k: npt.NDArray[np.float64], mean: float) -> npt.NDArray[np.float64]:
    """log P(k) by Loader's saddle-point form: terms stay small where k log(mean) - lgamma(k) would cancel."""
    x = (np.maximum(k, 1) - mean) / mean
    deviance = mean * ((1 + x) * np.log1p(x) - x)
    safe = np.maximum(k, 1)
    stirling = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * safe * safe)) / (safe * safe)) / (safe * safe)) / safe
    # For k below 16 the Stirling series is short of float64; these k are rare at mean >= 10, so be exact there.
    low = safe[safe < 16]
    stirling[safe < 16] = gammaln(low + 1) - (low * np.log(low) - low + 0.5 * np.log(2 * math.pi * low))
    result: npt.NDArray[np.float64] = -deviance - stirling - 0.5 * np.log(2 * math.pi * safe)
    result[k == 0] = -mean
    return result


def _discrete_laplace(count: int, scale: int, source: NoiseSource) -> Integers:
    """At most ``count`` values with P(k) proportional to exp(-|k| / scale) (CKS 2020, algorithm 2)."""
    # |k| = u + scale v with u in [0, scale) kept with probability exp(-u/scale) and v geometric with ratio 1/e.
    low = np.minimum(np.floor(source.uniform(count) * scale), scale - 1)
    low = low[source.uniform(count) < np.exp(-low / scale)]
    high = np.floor(-np.log(source.uniform(len(low))))
    magnitude = (low + scale * high).astype(np.int64)
    negative = (source.words(len(low)) >> np.uint64(63)).astype(bool)
    # Zero would otherwise come with both signs and so twice as often.
    keep = ~(negative & (magnitude == 0))
    signed: Integers = np.where(negative, -magnitude, magnitude)[keep]
    return signed


def _fill(size: int, draw: Callable[[int], Integers]) -> Integers:
    """Calls ``draw`` with a number of candidates until ``size`` accepted values have been collected."""
    out = np.empty(size, dtype=np.int64)
    done = 0
    while done < size:
        got = draw(min(_TILE, int((size - done) * 1.2) + 16))[: size - done]
        out[done : done + len(got)] = got
        done += len(got)
    return out


def _check(size: int, variance: float, what: str) -> None:
    if size < 0:
        raise PrivacyError(f"A noise vector of {size} values was asked for: expected at least 0, give its length.")
    if not 0 <= variance <= _LARGEST:
        raise PrivacyError(
            f"{what} is {variance}, expected a number from 0 to 2^60: lower the scale or the noise multiplier."
        )
