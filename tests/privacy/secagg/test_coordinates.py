import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.coordinates import Coordinate, Coordinates
from umbel.errors import SecAggError


@given(st.sampled_from([16, 20, 24, 32]), st.integers(1, 2000), st.data())
def test_sums_are_exact_and_digits_never_overflow(bits, cohort, data):
    upper = data.draw(st.integers(1, 10**9))
    layout = Coordinates([Coordinate("n", upper), Coordinate("loss", 50.0, -10.0, 1e-3)], bits, cohort)
    many = data.draw(st.integers(1, min(cohort, 20)))
    counts = data.draw(st.lists(st.integers(0, upper), min_size=many, max_size=many))
    losses = data.draw(st.lists(st.floats(-10, 50), min_size=many, max_size=many))
    packed = [layout.pack({"n": n, "loss": x}) for n, x in zip(counts, losses, strict=True)]
    assert all(digit >= 0 and digit * cohort <= (1 << (bits - 1)) - 1 for row in packed for digit in row)
    sums = layout.unpack(np.sum(packed, axis=0), many)
    assert sums["n"] == sum(counts)
    assert sums["loss"] == pytest.approx(sum(losses), abs=many * 0.5e-3 + 1e-9)


def test_bounds_saturate():
    layout = Coordinates([Coordinate("x", 5.0, -5.0)], 20, 10)
    for value, kept in ((7.0, 5.0), (math.inf, 5.0), (-math.inf, -5.0), (0.0, 0.0)):
        assert layout.unpack(layout.pack({"x": value}), 1)["x"] == kept


@pytest.mark.parametrize("values", [{}, {"x": 1.0, "y": 1.0}, {"y": 1.0}, {"x": math.nan}])
def test_metrics_that_do_not_fit_are_refused(values):
    with pytest.raises(SecAggError):
        Coordinates([Coordinate("x", 5.0)], 20, 10).pack(values)


def test_no_coordinates():
    layout = Coordinates([], 16, 3)
    assert layout.width == 0
    assert layout.unpack(layout.pack({}), 2) == {}


def test_impossible_layouts_are_refused():
    with pytest.raises(SecAggError, match="same name"):
        Coordinates([Coordinate("x", 1.0), Coordinate("x", 2.0)], 20, 3)
    with pytest.raises(SecAggError, match=r"secagg\.bits"):
        Coordinates([Coordinate("x", 1.0)], 16, 40_000)
    for options in ({"upper": 0.0}, {"upper": math.inf}, {"upper": 1.0, "resolution": 0.0}, {"upper": 1e30}):
        with pytest.raises(SecAggError):
            Coordinate("x", **options)
