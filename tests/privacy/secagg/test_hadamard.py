import math

import numpy as np
import pytest

from privacy.secagg.hadamard import block_size, coordinate_bound, padded, rotate, unrotate
from umbel.errors import SecAggError


@pytest.mark.parametrize("length", [1, 2, 3, 17, 16_384, 40_000, 300_001])
def test_rotation_keeps_norms_and_is_undone(length):
    values = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    turned = rotate(values, b"seed")
    assert len(turned) == padded(length) == -(-length // block_size(length)) * block_size(length)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-5)
    back = unrotate(turned.astype(np.float64), length, b"seed")
    np.testing.assert_allclose(back, values, atol=2e-5)


def test_it_is_linear():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 1000)).astype(np.float32)
    np.testing.assert_allclose(rotate(a, b"s") + rotate(b, b"s"), rotate(a + b, b"s"), atol=1e-5)


def test_a_spike_is_flattened_within_the_bound():
    spike = np.zeros(16_384, dtype=np.float32)
    spike[5] = 1.0
    assert np.abs(rotate(spike, b"s")).max() == pytest.approx(1 / 128, rel=1e-4)
    worst = 0.0
    for seed in range(30):
        values = np.zeros(16_384, dtype=np.float32)
        values[:50] = 1 / math.sqrt(50)
        worst = max(worst, float(np.abs(rotate(values, bytes([seed]))).max()))
    assert worst <= coordinate_bound(16_384, 1.0, 40 * math.log(2)) < 0.07


def test_the_seed_decides():
    values = np.ones(64, dtype=np.float32)
    assert not np.array_equal(rotate(values, b"a"), rotate(values, b"b"))


def test_another_length_is_refused():
    with pytest.raises(SecAggError):
        unrotate(np.zeros(100), 40_000, b"")
