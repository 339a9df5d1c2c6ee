import numpy as np
import pytest

from privacy.ftrl import BandedMatrix, CorrelatedNoise, optimised
from privacy.noise import FixedNoise
from umbel.errors import PrivacyError


def source(seed: int = 1) -> FixedNoise:
    return FixedNoise(seed, for_tests=True)


def run(noise: CorrelatedNoise, steps: int) -> np.ndarray:
    return np.stack([noise.add_(np.zeros(noise.size, dtype=np.float32)) for _ in range(steps)])


def test_covariance_over_steps_is_that_of_the_matrix() -> None:
    matrix = optimised(12, 4, 4)
    rows = run(CorrelatedNoise(matrix, 150_000, 2.0, source()), 12).astype(np.float64)
    inverse = np.linalg.inv(matrix.dense())
    wanted = 4.0 * inverse @ inverse.T
    assert np.abs(rows @ rows.T / rows.shape[1] - wanted).max() < 0.12
    assert np.abs(rows @ rows.T / rows.shape[1] / 1.21 - wanted).max() > 0.5
    # Undoing the matrix gives independent noise back: nothing is cancelled beyond what C says.
    whitened = matrix.dense() @ rows
    assert np.abs(whitened @ whitened.T / rows.shape[1] - 4 * np.eye(12)).max() < 0.1


def test_prefix_sums_are_less_noisy_than_with_independent_noise() -> None:
    matrix = optimised(40, 10, 10)
    plain = BandedMatrix((1.0,), 40, 10)
    correlated = run(CorrelatedNoise(matrix, 4000, matrix.sensitivity, source()), 40).cumsum(0)
    independent = run(CorrelatedNoise(plain, 4000, plain.sensitivity, source()), 40).cumsum(0)
    assert np.mean(correlated**2) < 0.5 * np.mean(independent**2)
    assert np.sqrt(np.mean(correlated**2)) == pytest.approx(matrix.error, rel=0.03)


def test_a_resumed_generator_goes_on_where_it_stopped() -> None:
    matrix = optimised(10, 4, 3)
    whole = CorrelatedNoise(matrix, 200, 1.0, source())
    first = CorrelatedNoise(matrix, 200, 1.0, source())
    run(whole, 4)
    run(first, 4)
    second = CorrelatedNoise(matrix, 200, 1.0, source(9))
    second.restore(first.state())
    # With the same fresh draws the two continue alike, so all memory is in the state.
    whole._source = second._source = None  # type: ignore[assignment]
    whole._source, second._source = source(5), source(5)
    assert np.array_equal(run(whole, 6), run(second, 6))
    with pytest.raises(PrivacyError, match="planned steps"):
        second.add_(np.zeros(200, dtype=np.float32))


def test_bad_input_is_refused() -> None:
    noise = CorrelatedNoise(optimised(4, 2, 2), 3, 1.0, source())
    with pytest.raises(PrivacyError, match="expected"):
        noise.add_(np.zeros(4, dtype=np.float32))
    with pytest.raises(PrivacyError, match="finite"):
        noise.add_(np.full(3, np.nan, dtype=np.float32))
    assert noise.step == 0
    with pytest.raises(PrivacyError, match="does not fit"):
        noise.restore({"past": np.zeros((5, 3)), "step": np.zeros(1)})
    with pytest.raises(PrivacyError, match="above 0"):
        CorrelatedNoise(optimised(4, 2, 2), 3, 0.0)


def test_one_band_is_independent_noise_without_memory() -> None:
    noise = CorrelatedNoise(BandedMatrix((1.0,), 3, 1), 5, 1.0, source())
    run(noise, 3)
    assert noise.state()["past"].size == 0
