import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import FixedNoise, NoiseSource, SystemNoise, add_gaussian_, gaussian_, normal
from privacy.noise.gaussian import grid_step
from umbel.errors import PrivacyError

N = 200_001


@pytest.fixture
def source() -> FixedNoise:
    return FixedNoise(7, for_tests=True)


@pytest.mark.parametrize("std", [1e-3, 1.0, 37.5])
def test_kolmogorov_smirnov_passes_at_the_right_scale_and_fails_at_a_wrong_one(std: float, source: FixedNoise) -> None:
    noise = gaussian_(np.full(N, 9.0, dtype=np.float32), std, source)
    assert stats.kstest(noise, "norm", args=(0, std)).pvalue > 1e-4
    assert stats.kstest(noise, "norm", args=(0, 1.1 * std)).pvalue < 1e-12
    assert stats.kstest(noise, "norm", args=(0, std / 1.1)).pvalue < 1e-12


def test_moments_and_independence_of_the_two_halves_of_each_pair(source: FixedNoise) -> None:
    x = normal(1_000_000, source)
    # Pairs that share uniforms stand half a tile apart.
    tile = x[:65_536]
    assert abs(np.corrcoef(tile[:32_768], tile[32_768:])[0, 1]) < 5 / np.sqrt(32_768)
    assert abs(np.corrcoef(tile[:32_768] ** 2, tile[32_768:] ** 2)[0, 1]) < 5 / np.sqrt(32_768)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 5e-3
    assert x.mean() == pytest.approx(0, abs=5e-3)
    assert stats.kurtosis(x) == pytest.approx(0, abs=0.025)


@pytest.mark.parametrize("start", [0.0, 1.0, -3.7, 1e4])
def test_adding_lands_on_a_grid_that_does_not_depend_on_the_value(start: float, source: FixedNoise) -> None:
    vector = np.full(N, start, dtype=np.float32)
    assert add_gaussian_(vector, 2.0, source) is vector
    difference = vector.astype(np.float64) - start
    assert difference.mean() == pytest.approx(0, abs=0.03)
    assert difference.std() == pytest.approx(2.0, rel=0.01)
    grid = grid_step(2.0)
    assert np.all(np.remainder(vector.astype(np.float64), grid) == 0)
    assert grid <= 2.0 * 2**-20


def test_the_grid_is_neither_too_coarse_nor_missed_by_any_value(source: FixedNoise) -> None:
    # With noise of std 1 each grid cell near the middle must be reachable from two different inputs alike.
    low = np.zeros(1 << 20, dtype=np.float32)
    high = np.full(1 << 20, np.float32(1 / 3), dtype=np.float32)
    a, b = add_gaussian_(low, 1.0, source), add_gaussian_(high, 1.0, source)
    odd = [np.mean(np.remainder(v[np.abs(v) < 1].astype(np.float64) / grid_step(1.0), 2) == 1) for v in (a, b)]
    assert odd == pytest.approx([0.5, 0.5], abs=5e-3)


def test_torch_tensors_are_noised_in_place(source: FixedNoise) -> None:
    tensor = torch.zeros(50, 400)
    assert add_gaussian_(tensor, 3.0, source) is tensor
    assert float(tensor.std()) == pytest.approx(3.0, rel=0.03)


def test_zero_std_and_empty_vectors_change_nothing() -> None:
    vector = np.array([1.5, -2.25], dtype=np.float32)
    assert add_gaussian_(vector, 0.0).tolist() == [1.5, -2.25]
    assert add_gaussian_(np.empty(0, dtype=np.float32), 1.0).size == 0
    assert normal(0).size == 0
    assert normal(3).size == 3


@pytest.mark.parametrize("std", [-1.0, float("inf"), float("nan")])
def test_impossible_deviations_are_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="expected a finite number"):
        add_gaussian_(np.zeros(3, dtype=np.float32), std)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_noise_would_not_hide_are_refused(value: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        add_gaussian_(np.array([0, value], dtype=np.float32), 1.0)


def test_wrong_dtype_and_layout_are_refused() -> None:
    with pytest.raises(PrivacyError, match="float32"):
        add_gaussian_(np.zeros(3), 1.0)
    with pytest.raises(PrivacyError, match="contiguous"):
        add_gaussian_(np.zeros((4, 4), dtype=np.float32)[:, ::2], 1.0)
    with pytest.raises(PrivacyError, match="float32"):
        gaussian_(torch.zeros(3, dtype=torch.bfloat16), 1.0)


class _Extreme(NoiseSource):
    def __init__(self, word: int) -> None:
        self.word = word

    def words(self, count: int):
        return np.full(count, self.word, dtype=np.uint64)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_extreme_words_give_finite_noise(word: int) -> None:
    assert np.isfinite(normal(8, _Extreme(word))).all()


def test_uniforms_are_never_zero_or_one() -> None:
    assert _Extreme(0).uniform(2).min() > 0
    assert _Extreme(2**64 - 1).uniform(2).max() < 1


def test_system_noise_never_repeats_and_takes_no_seed() -> None:
    source = SystemNoise()
    assert not np.array_equal(source.words(4), source.words(4))
    with pytest.raises(TypeError):
        SystemNoise(1)  # type: ignore[call-arg]
    np.random.seed(0)
    torch.manual_seed(0)
    first = normal(4)
    np.random.seed(0)
    torch.manual_seed(0)
    assert not np.array_equal(first, normal(4))


def test_repeatable_noise_is_refused_outside_tests() -> None:
    with pytest.raises(PrivacyError, match="for_tests=True"):
        FixedNoise(1)
    one, two = FixedNoise(1, for_tests=True), FixedNoise(1, for_tests=True)
    assert np.array_equal(one.words(9), two.words(9))
    assert not np.array_equal(one.words(9), one.words(9))
