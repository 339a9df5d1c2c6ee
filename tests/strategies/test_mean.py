import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import Upload
from strategies.mean import RunningMean, weighted_mean
from umbel.errors import StrategyError


@given(
    st.integers(0, 1000), st.integers(1, 40), st.sampled_from([1, 5, 8192, 20001]), st.sampled_from([1e-30, 1, 1e30])
)
def test_equals_numpy_average(seed, n, size, scale):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, size)).astype(np.float32)
    weights = rng.uniform(0, 5, n) + 0.01
    found = weighted_mean([Upload(v, float(w * scale), 1) for v, w in zip(vectors, weights, strict=True)])
    wanted = np.average(vectors.astype(float), axis=0, weights=weights)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert found.dtype == np.float32


def test_zero_weight_counts_nothing_and_strided_input_is_read_right():
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = weighted_mean([Upload(vectors[:, 0], 1.0, 1), Upload(vectors[:, 1], 0.0, 1)])
    np.testing.assert_array_equal(found, vectors[:, 0])


def test_refusals():
    mean = RunningMean()
    with pytest.raises(StrategyError, match="at least one"):
        mean.result()
    mean.add(np.zeros(3, np.float32), 0.0)
    with pytest.raises(StrategyError, match="positive"):
        mean.result()
    with pytest.raises(StrategyError, match="length"):
        mean.add(np.zeros(4, np.float32), 1.0)
    with pytest.raises(StrategyError, match="weights"):
        mean.add(np.zeros(3, np.float32), -1.0)
