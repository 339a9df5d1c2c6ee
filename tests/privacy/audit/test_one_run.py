"""The one-run bound against known mechanisms: never too strict, and strict enough."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from privacy.audit import CurveTradeOff, GaussianTradeOff, coins, dp_sgd_trade_off, guess, judge, rejects
from privacy.noise import FixedNoise
from umbel.errors import AuditFailure, PrivacyError


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_never_stricter_than_randomised_response(epsilon):
    """For randomised response the number of right guesses is binomial: a rejection needs a tail below the level."""
    claim = CurveTradeOff((epsilon,), (0.0,))
    total, level = 120, 0.05
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    least = next(c for c in range(total + 1) if rejects(claim, total, total, c, level=level))
    assert binom.sf(least - 1, total, p) <= level
    # and not by much: within a few guesses of the exact test
    exact = next(c for c in range(total + 1) if binom.sf(c - 1, total, p) <= level)
    assert exact <= least <= exact + 3


@given(st.floats(0.05, 3.0), st.integers(1, 60), st.integers(0, 60), st.sampled_from([0.01, 0.05, 0.2]))
def test_monotone(mu, guesses, correct, level):
    correct = min(correct, guesses)
    total = 100
    here = rejects(GaussianTradeOff(mu), total, guesses, correct, level=level)
    if here and correct < guesses:
        assert rejects(GaussianTradeOff(mu), total, guesses, correct + 1, level=level)
    if here:
        assert rejects(GaussianTradeOff(mu / 2), total, guesses, correct, level=level)


def _gaussian_run(rng, mu, count):
    members = rng.random(count) < 0.5
    return mu * members + rng.standard_normal(count), members


def test_a_true_claim_is_rejected_no_more_often_than_its_level():
    rng = np.random.default_rng(5)
    claim = GaussianTradeOff(1.0)
    refused = 0
    for _ in range(200):
        scores, members = _gaussian_run(rng, 1.0, 400)
        made = guess(scores, 100)
        correct = int(((made == 1) & members).sum() + ((made == -1) & ~members).sum())
        refused += rejects(claim, 400, 100, correct, level=0.05)
    assert refused <= binom.ppf(0.999, 200, 0.05)


def test_a_false_claim_is_rejected():
    rng = np.random.default_rng(6)
    scores, members = _gaussian_run(rng, 2.0, 1000)
    report = judge(scores, members, 250, GaussianTradeOff(1.0), GaussianTradeOff, delta=1e-5)
    assert report.rejected
    truth = GaussianTradeOff(2.0).epsilon(1e-5)
    assert report.claimed < report.epsilon < truth
    with pytest.raises(AuditFailure, match="claimed"):
        report.require()


def test_guessing_at_random_shows_nothing():
    rng = np.random.default_rng(7)
    report = judge(
        rng.standard_normal(500), rng.random(500) < 0.5, 100, GaussianTradeOff(0.5), GaussianTradeOff, delta=1e-5
    )
    assert not report.rejected
    assert report.epsilon < 0.5
    report.require()


def test_guesses_abstain_in_the_middle_and_on_nan():
    scores = np.array([5.0, -5.0, 0.1, np.nan, 4.0, -4.0])
    assert guess(scores, 4).tolist() == [1, -1, 0, 0, 1, -1]
    assert guess(scores, 0).tolist() == [0] * 6
    with pytest.raises(PrivacyError, match="at most all"):
        guess(scores, 7)


@pytest.mark.parametrize("bad", [(10, 5, 6), (4, 5, 1), (0, 0, 0), (10, 5, -1)])
def test_impossible_counts(bad):
    with pytest.raises(PrivacyError, match="cannot be judged"):
        rejects(GaussianTradeOff(1.0), *bad)


def test_gaussian_trade_off():
    assert GaussianTradeOff(1.0).epsilon(1e-5) == pytest.approx(4.377, abs=2e-3)  # sigma 1, one step
    assert GaussianTradeOff(0.0).epsilon(1e-5) == 0.0
    assert GaussianTradeOff(1.3).inverse(0.7) == pytest.approx(norm.cdf(norm.ppf(0.7) - 1.3))
    assert GaussianTradeOff(1.0).inverse(0.0) == 0.0


def test_the_curve_of_dp_sgd_lies_below_and_near_the_exact_one():
    """At sampling rate just below 1 the PLD's curve must not be above the exact Gaussian one."""
    exact, curve = GaussianTradeOff(math.sqrt(4) / 2), dp_sgd_trade_off(2.0, 0.9999, 4)
    for p in (0.01, 0.1, 0.5, 0.9):
        assert curve.inverse(p) <= exact.inverse(p) + 2e-3
        assert curve.inverse(p) >= 0.9 * exact.inverse(p) - 2e-3


def test_dp_sgd_reference_epsilon():
    assert dp_sgd_trade_off(1.0, 0.01, 1000).epsilon(1e-5) == pytest.approx(1.83, abs=0.02)


@pytest.mark.parametrize("bad", [(0.0, 0.5, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (1.0, 0.5, 0)])
def test_no_such_mechanism(bad):
    with pytest.raises(PrivacyError, match="no DP-SGD"):
        dp_sgd_trade_off(*bad)


def test_a_claim_that_is_no_curve():
    for epsilons, deltas in [((), ()), ((1.0,), (2.0,)), ((-1.0,), (0.0,)), ((1.0, 2.0), (0.1,))]:
        with pytest.raises(PrivacyError, match="no privacy curve"):
            CurveTradeOff(epsilons, deltas)


def test_coins_are_fair():
    heads = int(coins(4000, FixedNoise(3, for_tests=True)).sum())
    assert binom.ppf(1e-6, 4000, 0.5) <= heads <= binom.ppf(1 - 1e-6, 4000, 0.5)
