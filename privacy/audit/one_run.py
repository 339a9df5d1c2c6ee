"""The one-run audit of f-DP: Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run",
arXiv 2410.22235 (ICML 2025): the bound on the number of right guesses and its numerical test.

m canaries are each in the data by their own fair coin; the mechanism runs once; an adversary guesses the coins of the
c' canaries it is surest about, and c guesses are right. With p_i = Pr[i right], the paper shows for every set T

    sum_{i in T} (i / m) p_i  <=  1 - f( sum_{i in T} ((c' - i + 1) / m) p_{i-1} / (k - 1) ).

Write r_i and h_i for the right and the wrong mass of the tail from i on (the sums above without f). Then
h_i >= (k - 1) blow-up^-1(r_{i+1}) and r_i - r_{i+1} = i / (c' - i) (h_i - h_{i+1}). Start from a tail of probability
``level`` at c, which makes all that follows least, and go down to 0: if r_0 + h_0 exceeds c' / m, which is the mass of
all outcomes, then c or more right guesses have a probability below ``level`` under f, and the claim is rejected.

A rejection is evidence against the claim; a low bound proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.audit.tradeoff import TradeOff
from umbel.errors import AuditFailure, PrivacyError


def rejects(claim: TradeOff, total: int, guesses: int, correct: int, *, level: float = 0.05, options: int = 2) -> bool:
    """Whether so many right guesses have a probability below ``level`` under the claim.

    Args:
        claim: the trade-off function that the mechanism is said to have.
        total: m, canaries that were flipped.
        guesses: c', how many of them were guessed; fixed before looking at the coins.
        correct: c.
        level: of the test, in (0, 1).
        options: k, how many values each coin has.

    Raises:
        PrivacyError: unless 0 <= correct <= guesses <= total, total >= 1 and level in (0, 1).
    """
    if not (0 <= correct <= guesses <= total and total >= 1 and 0 < level < 1 and options >= 2):
        raise PrivacyError(
            f"{correct} right of {guesses} guesses on {total} canaries at level {level} cannot be judged: expected "
            "correct <= guesses <= canaries, at least one canary and a level between 0 and 1."
        )
    if correct == 0:
        return False
    right = level * correct / total
    wrong = level * (guesses - correct) / total
    for i in range(correct - 1, -1, -1):
        least = max(wrong, (options - 1) * claim.inverse(right))
        right += i / (guesses - i) * (least - wrong)
        wrong = least
        if right + wrong > guesses / total:
            return True
    return False


@dataclass(frozen=True)
class OneRunReport:
    """What one run showed, beside the claim.

    Attributes:
        total, guesses, correct: canaries, guesses made, guesses right.
        epsilon: empirical lower bound at ``delta``, with confidence 1 - ``level``; 0 when nothing could be shown.
        claimed: epsilon that the claim means at ``delta``.
        rejected: the claim's own curve was rejected, or the bound lies above the claimed epsilon.
    """

    total: int
    guesses: int
    correct: int
    epsilon: float
    claimed: float
    delta: float
    level: float
    rejected: bool

    def require(self) -> None:
        """Raises AuditFailure when the claim is rejected."""
        if self.rejected:
            raise AuditFailure(
                f"The audit shows at least epsilon {self.epsilon:.2f} at delta {self.delta:g} ({self.correct} of "
                f"{self.guesses} guesses right) where {self.claimed:.2f} is claimed: something adds too little noise "
                "or clips too little, release nothing."
            )


def guess(scores: npt.NDArray[np.float64], guesses: int) -> npt.NDArray[np.int8]:
    """Guesses "in" (1) for the highest half of ``guesses`` scores and "out" (-1) for the lowest, else abstains (0).

    Ties are broken by position; scores that are not finite are never guessed "in" or "out" before finite ones.

    Raises:
        PrivacyError: more guesses than scores.
    """
    if not 0 <= guesses <= len(scores):
        raise PrivacyError(f"{guesses} guesses on {len(scores)} canaries are impossible: guess at most all of them.")
    # A score that is not finite sorts to the middle, where the adversary abstains.
    middle = np.median(scores[np.isfinite(scores)]) if np.isfinite(scores).any() else 0.0
    order = np.argsort(np.where(np.isfinite(scores), scores, middle), kind="stable")
    made = np.zeros(len(scores), dtype=np.int8)
    low = guesses // 2
    made[order[:low]] = -1
    made[order[len(order) - (guesses - low) :]] = 1
    return made


def judge(
    scores: npt.NDArray[np.float64],
    members: npt.NDArray[np.bool_],
    guesses: int,
    claim: TradeOff,
    family: Callable[[float], TradeOff],
    *,
    delta: float,
    level: float = 0.05,
    bounds: tuple[float, float] = (1e-3, 64.0),
) -> OneRunReport:
    """Guesses from scores, tests the claim, and finds the largest epsilon that the guesses rule out.

    The bound takes the mechanism to be *some* member of ``family`` (the same mechanism with less noise), which is what
    makes it tight. Where the claim is a bare (epsilon, delta) it fails when the bound is above it.

    Args:
        scores: float64 [m], higher means "in" is likelier; computed without looking at ``members``.
        members: bool [m], the coins.
        guesses: c', chosen beforehand.
        claim: what is promised.
        family: from a strength (larger leaks more) to the trade-off function of a like mechanism; the bound is the
            epsilon of the strongest member of the family that is rejected.
        delta: at which epsilons are stated.
        level: one minus the confidence.
        bounds: range of strengths that is searched.

    Raises:
        PrivacyError: as :func:`rejects`, or scores and members differ in length.
    """
    if scores.shape != members.shape:
        raise PrivacyError(f"{len(scores)} scores and {len(members)} coins do not match: give one of each a canary.")
    made = guess(scores, guesses)
    correct = int(((made == 1) & members).sum() + ((made == -1) & ~members).sum())

    def refused(strength: float) -> bool:
        return rejects(family(strength), len(scores), guesses, correct, level=level)

    low, high = bounds
    epsilon = 0.0
    if refused(low):
        if refused(high):
            low = high
        while high / low > 1.01:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if refused(middle) else (low, middle)
        epsilon = family(low).epsilon(delta)
    claimed = claim.epsilon(delta)
    rejected = rejects(claim, len(scores), guesses, correct, level=level) or epsilon > claimed * (1 + 1e-3)
    return OneRunReport(len(scores), guesses, correct, epsilon, claimed, delta, level, rejected)
