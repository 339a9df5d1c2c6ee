import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.ftrl import BandedMatrix, optimised
from umbel.errors import PlanError


@settings(max_examples=40)
@given(steps=st.integers(1, 12), separation=st.integers(1, 6), bands=st.integers(1, 6), seed=st.integers(0, 1000))
def test_sensitivity_bounds_every_participation_and_is_attained(steps, separation, bands, seed) -> None:
    rng = np.random.default_rng(seed)
    bands = min(bands, separation)
    matrix = BandedMatrix((1.0, *rng.normal(size=bands - 1)), steps, separation)
    dense, worst = matrix.dense(), 0.0
    for chosen in itertools.product([0, 1], repeat=steps):
        at = np.flatnonzero(chosen)
        if np.any(np.diff(at) < separation):
            continue
        # Contributions are unit vectors in any directions.
        contribution = np.zeros((steps, 3))
        directions = rng.normal(size=(len(at), 3))
        contribution[at] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        moved = float(np.linalg.norm(dense @ contribution))
        assert moved <= matrix.sensitivity + 1e-9
        worst = max(worst, moved)
    assert worst == pytest.approx(matrix.sensitivity)


def test_error_is_that_of_the_dense_factorisation() -> None:
    matrix = optimised(20, 5, 4)
    noise = np.tril(np.ones((20, 20))) @ np.linalg.inv(matrix.dense())
    assert matrix.error == pytest.approx(matrix.sensitivity * np.sqrt((noise**2).sum() / 20))


@pytest.mark.parametrize(("steps", "separation", "bands"), [(160, 10, 8), (100, 100, 20), (7, 3, 3)])
def test_optimised_beats_the_square_root_and_independent_noise(steps: int, separation: int, bands: int) -> None:
    best = optimised(steps, separation, bands)
    root = np.cumprod([1.0, *((2 * j - 1) / (2 * j) for j in range(1, bands))])
    assert best.error < BandedMatrix(tuple(root), steps, separation).error
    assert best.error < 0.9 * BandedMatrix((1.0,), steps, separation).error
    for nudge in (0.99, 1.01):
        moved = (1.0, best.coefficients[1] * nudge, *best.coefficients[2:])
        assert BandedMatrix(moved, steps, separation).error >= best.error * (1 - 1e-9)


def test_more_bands_are_never_worse() -> None:
    errors = [optimised(120, 12, bands).error for bands in (1, 2, 4, 8, 12)]
    assert errors == sorted(errors, reverse=True)
    assert optimised(120, 12, 50).bands == 12


def test_impossible_matrices_are_refused() -> None:
    with pytest.raises(PlanError, match="at least 1"):
        optimised(0, 1, 1)
    with pytest.raises(PlanError, match=r"lower privacy\.bands"):
        BandedMatrix((1.0, 0.5, 0.3), 10, 2)
    with pytest.raises(PlanError, match="coefficient 1"):
        BandedMatrix((0.5,), 10, 2)
    with pytest.raises(PlanError, match="coefficient 1"):
        BandedMatrix((1.0, float("nan")), 10, 2)
