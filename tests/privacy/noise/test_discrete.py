import numpy as np
import pytest
from scipy import stats

from privacy.noise import FixedNoise, discrete_gaussian, skellam
from privacy.noise.discrete import poisson
from umbel.errors import PrivacyError

N = 300_000


@pytest.fixture
def source() -> FixedNoise:
    return FixedNoise(11, for_tests=True)


def chi_square(values, pmf, reach: int) -> float:
    """p-value of the values' counts against probabilities on [-reach, reach], the rest in one cell."""
    points = np.arange(-reach, reach + 1)
    expected = pmf(points) * len(values)
    kept = expected > 8
    observed = np.bincount(np.clip(values, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)[1:-1][kept]
    rest = len(values) - observed.sum()
    expected_rest = max(len(values) - expected[kept].sum(), 1e-9)
    if expected_rest < 8:
        return float(stats.chisquare(observed, expected[kept] * observed.sum() / expected[kept].sum()).pvalue)
    return float(stats.chisquare(np.append(observed, rest), np.append(expected[kept], expected_rest)).pvalue)


@pytest.mark.parametrize("mu", [0.3, 6.0, 19.0, 21.0, 100.0, 5e3])
def test_skellam_fits_its_variance_and_not_another(mu: float, source: FixedNoise) -> None:
    values = skellam(N, mu, source)
    assert values.dtype == np.int64
    reach = int(6 * mu**0.5) + 5
    assert chi_square(values, lambda k: stats.skellam.pmf(k, mu / 2, mu / 2), reach) > 1e-4
    wrong = 1.21 * mu
    assert chi_square(values, lambda k: stats.skellam.pmf(k, wrong / 2, wrong / 2), reach) < 1e-9


@pytest.mark.parametrize("mean", [0.2, 9.99, 10.0, 30.0, 1e3])
def test_poisson_on_both_sides_of_the_switch(mean: float, source: FixedNoise) -> None:
    values = poisson(N, mean, source)
    reach = int(mean + 8 * mean**0.5) + 6
    assert values.min() >= 0
    assert chi_square(values, lambda k: stats.poisson.pmf(k, mean), reach) > 1e-4
    assert chi_square(values, lambda k: stats.poisson.pmf(k, 1.1 * mean), reach) < 1e-9


def discrete_gaussian_pmf(sigma: float):
    weights = lambda k: np.exp(-0.5 * (np.asarray(k) / sigma) ** 2)  # noqa: E731
    total = weights(np.arange(-int(40 * sigma) - 5, int(40 * sigma) + 6)).sum()
    return lambda k: weights(k) / total


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.0, 4.2, 60.0])
def test_discrete_gaussian_fits_its_scale_and_not_another(sigma: float, source: FixedNoise) -> None:
    values = discrete_gaussian(N, sigma, source)
    reach = int(7 * sigma) + 4
    assert chi_square(values, discrete_gaussian_pmf(sigma), reach) > 1e-4
    assert chi_square(values, discrete_gaussian_pmf(1.1 * sigma), reach) < 1e-9


@pytest.mark.parametrize("mu", [1e6, 1e9, 1e13])
def test_large_skellam_is_nearly_gaussian(mu: float, source: FixedNoise) -> None:
    values = skellam(N, mu, source)
    assert stats.kstest(values, "norm", args=(0, mu**0.5)).pvalue > 1e-4
    assert stats.kstest(values, "norm", args=(0, 1.1 * mu**0.5)).pvalue < 1e-12


def test_skellam_shares_add_up(source: FixedNoise) -> None:
    total = sum(skellam(N, 40.0, source) for _ in range(5))
    assert chi_square(total, lambda k: stats.skellam.pmf(k, 100, 100), 90) > 1e-4


def test_zero_and_empty() -> None:
    assert not skellam(5, 0).any()
    assert not discrete_gaussian(5, 0).any()
    assert skellam(0, 3.0).size == discrete_gaussian(0, 3.0).size == 0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 1e30])
def test_impossible_scales_are_refused(bad: float) -> None:
    with pytest.raises(PrivacyError, match="expected a number from 0"):
        skellam(3, bad)
    with pytest.raises(PrivacyError, match="expected a number from 0"):
        discrete_gaussian(3, bad)
    with pytest.raises(PrivacyError, match="at least 0"):
        skellam(-1, 1.0)
