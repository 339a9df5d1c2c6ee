import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.quantize import fraction_bits, l2_norm, quantize_into
from umbel.errors import SecAggError

CASES = [("<u2", 100.0), ("<u2", 30_000.0), ("<u4", 100.0), ("<u4", 2.0**20), ("<u4", 2.0**30)]


def rounded(values, factor, bound, dtype="<u4", threads=1):
    words = np.empty(len(values), dtype=dtype)
    quantize_into(words, values, factor, bound, threads=threads)
    return words.view(np.int16 if words.itemsize == 2 else np.int32).astype(np.int64)


@pytest.mark.parametrize(("dtype", "bound"), CASES)
def test_roundings_are_neighbours_and_unbiased(dtype, bound):
    rng = np.random.default_rng(3)
    base = rng.uniform(-0.99, 0.99, 24).astype(np.float32)
    values = np.repeat(base, 20_000)
    out = rounded(values, bound, bound, dtype)
    exact = values.astype(np.float64) * bound
    # float32 rounding of the product is relative 2^-23; beyond it only the two neighbours may appear.
    slack = bound * 2.0**-22 + 2.0**-8
    assert np.abs(out - exact).max() <= 1 + slack
    means = out.reshape(24, -1).mean(axis=1)
    error = np.abs(means - base.astype(np.float64) * bound)
    assert error.max() < 6 * 0.5 / math.sqrt(20_000) + bound * 2.0**-23 + 2.0**-9


def test_a_deterministic_rounding_would_fail_the_test_above():
    values = np.full(20_000, 0.3, dtype=np.float32)
    assert abs(np.rint(values).mean() - 0.3) > 6 * 0.5 / math.sqrt(20_000)
    assert 0 < rounded(values, 1.0, 10.0).mean() < 1


def test_whole_numbers_and_zero_are_exact():
    values = np.array([0, 1, -1, 99, -100, -0.0], dtype=np.float32)
    assert rounded(values, 1.0, 100.0).tolist() == [0, 1, -1, 99, -100, 0]


def test_values_beyond_the_bound_are_cut():
    out = rounded(np.array([1e9, -1e9], dtype=np.float32), 1.0, 50.0)
    assert np.abs(out).max() <= 51


def test_randomness_is_fresh_for_each_call_and_part():
    values = np.full(1 << 20, 0.5, dtype=np.float32)
    one, two = rounded(values, 1.0, 4.0, threads=2), rounded(values, 1.0, 4.0, threads=2)
    half = len(values) // 2
    for a, b in ((one, two), (one[:half], one[half:]), (one[:-1], one[1:])):
        agreement = np.mean(a == b)
        assert abs(agreement - 0.5) < 6 * 0.5 / math.sqrt(len(a))


def test_empty():
    assert len(rounded(np.zeros(0, dtype=np.float32), 1.0, 4.0)) == 0


@given(st.floats(0, 2.0**31 - 2))
def test_fixed_point_always_fits(bound):
    fraction = fraction_bits(bound)
    assert 8 <= fraction <= 16
    narrow = (bound + 2.0) * 2.0**fraction <= 2.0**30
    assert narrow or (bound + 2.0) * 2.0**fraction < 2.0**53


def test_a_bound_that_does_not_fit_is_refused():
    with pytest.raises(SecAggError):
        rounded(np.zeros(3, dtype=np.float32), 1.0, 2.0**15, "<u2")
    with pytest.raises(SecAggError):
        quantize_into(np.zeros(2, dtype=np.uint32), np.zeros(3, dtype=np.float32), 1.0, 5.0)


@pytest.mark.parametrize("value", [1e30, 1.0, 1e-3, 0.0])
def test_norms(value):
    values = np.full(100_000, value, dtype=np.float32)
    assert l2_norm(values) == pytest.approx(float(np.float32(value)) * math.sqrt(100_000), rel=1e-5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_norms_show_what_is_not_finite(value):
    values = np.ones(70_000, dtype=np.float32)
    values[-1] = value
    assert not math.isfinite(l2_norm(values))
