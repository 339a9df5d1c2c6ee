import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.accumulator import ExactAccumulator
from umbel.errors import AdapterError


@given(st.integers(1, 12), st.integers(1, 40_000), st.randoms(use_true_random=False), st.booleans())
def test_the_sum_does_not_depend_on_the_order(count, size, random, weighted):
    generator = np.random.default_rng(random.randint(0, 2**32))
    vectors = [generator.normal(0, 10.0 ** random.randint(-6, 0), size).astype(np.float32) for _ in range(count)]
    weights = [float(random.randint(1, 900)) if weighted else 1.0 for _ in range(count)]

    def mean(order):
        total = ExactAccumulator(size, unit=1024.0 if weighted else 1.0)
        for index in order:
            total.add(vectors[index], weights[index])
        return total.mean()

    order = list(range(count))
    first = mean(order)
    random.shuffle(order)
    np.testing.assert_array_equal(first, mean(order))
    exact = sum(w * v.astype(np.float64) for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    bound = count * 2.0**-39 * (1024 / sum(weights) if weighted else 1 / count)  # every addend is off by at most 2^-39
    np.testing.assert_allclose(first, exact, rtol=2.0**-23, atol=bound)


def test_plain_float_sums_do_depend_on_the_order():
    """Why the grid is there: the same addends in another order give another float32 sum."""
    values = np.float32([1e-3, 1e3, -1e3])
    assert (values[0] + values[1]) + values[2] != values[0] + (values[1] + values[2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e4])
def test_broken_vectors_are_refused_and_leave_the_sum_alone(value):
    total = ExactAccumulator(3)
    good = np.float32([1, 2, 3])
    total.add(good, 1.0)
    bad = good.copy()
    bad[1] = value
    with pytest.raises(AdapterError):
        total.add(bad, 1.0)
    np.testing.assert_array_equal(total.mean(), good)
    assert total.count == 1


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_weights_must_be_positive(weight):
    with pytest.raises(AdapterError, match="weight"):
        ExactAccumulator(1).add(np.float32([1]), weight)


def test_wrong_length_and_empty_sum_are_refused():
    with pytest.raises(AdapterError, match="expected 2"):
        ExactAccumulator(2).add(np.zeros(3, np.float32), 1.0)
    with pytest.raises(AdapterError, match="no update"):
        ExactAccumulator(2).mean()
