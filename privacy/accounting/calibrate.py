"""The smallest noise multiplier that keeps a target, from the conservative side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from privacy.accounting.compose import epsilon, epsilon_bound
from privacy.accounting.event import Event
from umbel.errors import PlanError

LOWEST, HIGHEST = 1e-2, 1e6


def calibrate(
    target: float,
    delta: float,
    make_events: Callable[[float], Iterable[Event]],
    *,
    tolerance: float = 1e-3,
) -> float:
    """The noise multiplier z whose events spend at most ``target``.

    Starts from the quick Rényi bound, then brackets the root of the tight epsilon by secants of log epsilon over
    log z, and returns the end of the bracket that keeps the budget.

    Args:
        target: epsilon, finite and above 0.
        delta: above 0 and below 1.
        make_events: the planned events at a noise multiplier; epsilon must not rise with it.
        tolerance: largest relative distance of z above the smallest sufficient multiplier.

    Returns:
        z with ``epsilon(make_events(z), delta) <= target``; at least 0.01.

    Raises:
        PlanError: a target out of range, or one that no multiplier up to a million keeps.
    """
    if not (math.isfinite(target) and target > 0):
        raise PlanError(f"A target epsilon is {target}, expected a finite number above 0: usual values are 1 to 10.")

    def gap(z: float, measure: Callable[[Iterable[Event], float], float] = epsilon) -> float:
        spent = measure(make_events(z), delta)
        return math.log(max(spent, 1e-12) / target) if math.isfinite(spent) else 50.0

    # The quick bound gives a sufficient multiplier; where it is all there is, it is the answer.
    high = _bisect(lambda z: gap(z, epsilon_bound), tolerance, target, delta)
    gap_high = gap(high)
    low, gap_low, reach = high, gap_high, 1.0
    while gap_low <= 0:
        # Epsilon falls a little faster than 1/z; aim just below the root to find the other end.
        low = max(LOWEST, high * math.exp(min(gap_low, 0) * reach - tolerance))
        gap_low = gap(low)
        if gap_low <= 0:
            high, gap_high, reach = low, gap_low, 2 * reach
            if low <= LOWEST:
                return low
    while high / low > 1 + tolerance:
        width = math.log(high / low)
        share = gap_low / (gap_low - gap_high) if gap_high < 0 else 1.0
        root = math.log(low) + min(max(share, 0.05), 0.95) * width
        for guess in (math.exp(root + tolerance / 2.2), math.exp(root - tolerance / 2.2)):
            if low < guess < high:
                value = gap(guess)
                if value > 0:
                    low, gap_low = guess, value
                else:
                    high, gap_high = guess, value
    return high


def _bisect(gap: Callable[[float], float], tolerance: float, target: float, delta: float) -> float:
    low = high = 1.0
    while gap(high) > 0:
        low, high = high, high * 4
        if high > HIGHEST:
            raise PlanError(
                f"No noise multiplier up to {HIGHEST:g} keeps epsilon {target} at delta {delta}: raise epsilon or "
                "delta, lower the steps, or use more examples or clients."
            )
    while low == high or gap(low) <= 0:
        if low < LOWEST:
            return high
        high, low = low, low / 4
    while high / low > 1 + tolerance / 2:
        middle = math.sqrt(low * high)
        if gap(middle) > 0:
            low = middle
        else:
            high = middle
    return high
