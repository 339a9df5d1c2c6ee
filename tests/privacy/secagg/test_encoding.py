import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg import Coordinate, Encoding, NoisePlan
from umbel.errors import SecAggError

SEED = b"context"


def clipped(values, clip):
    exact = values.astype(np.float64)
    norm = np.linalg.norm(exact)
    return exact * min(1.0, clip / norm) if norm else exact


@settings(max_examples=60)
@given(st.data())
def test_the_decoded_sum_is_within_the_stated_error(data):
    bits = data.draw(st.sampled_from([16, 20, 24, 32]))
    cohort = data.draw(st.integers(1, 40))
    many = data.draw(st.integers(1, min(cohort, 6)))
    length = data.draw(st.integers(1, 80))
    clip = data.draw(st.sampled_from([1e-3, 1.0, 50.0]))
    weighted = data.draw(st.booleans())
    encoding = Encoding.fit(bits, length, cohort, clip, max_weight=1000 if weighted else 0)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    total, expected, counts = encoding.zeros(), np.zeros(length), []
    for _ in range(many):
        size = data.draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))
        values = (rng.standard_normal(length) * size * clip / math.sqrt(length)).astype(np.float32)
        counts.append(data.draw(st.integers(0, 1000)))
        total += encoding.encode(values, {}, counts[-1], SEED)
        expected += clipped(values, clip) * (counts[-1] / 1000 if weighted else 1.0)
    found, metrics = encoding.decode(total, many, SEED)
    assert found.shape == (length,)
    assert np.abs(found - expected).max() <= many * (1.01 / encoding.scale + clip * 2.0**-21)
    assert metrics == ({"weight": sum(counts)} if weighted else {})


def test_extreme_sums_do_not_wrap():
    for bits in (16, 20, 24, 32):
        for cohort in (3, 50, 1000):
            encoding = Encoding.fit(bits, 1, cohort, 1.0)
            word = int(encoding.encode(np.array([7.0], np.float32), {}, 1, SEED)[0])
            assert word <= encoding.scale + 2
            assert cohort * (math.ceil(encoding.scale * (1 + 1e-6)) + 1) < 2 ** (bits - 1) + 2 * cohort
            total = np.array([cohort * word % 2 ** (16 if bits == 16 else 32)]).astype(encoding.zeros().dtype)
            assert encoding.decode(total, cohort, SEED)[0][0] == pytest.approx(cohort, rel=2 / encoding.scale + 1e-5)


@pytest.mark.parametrize("bits", [16, 20])
def test_rotation_gives_finer_steps_and_the_same_sum(bits):
    plain, turned = (Encoding.fit(bits, 20_000, 100, 1.0, rotate=rotate) for rotate in (False, True))
    assert turned.scale > 3 * plain.scale
    rng = np.random.default_rng(0)
    total, expected = turned.zeros(), np.zeros(20_000)
    for _ in range(30):
        values = (rng.standard_normal(20_000) / math.sqrt(20_000)).astype(np.float32)
        total += turned.encode(values, {}, 1, SEED)
        expected += clipped(values, 1.0)
    error = turned.decode(total, 30, SEED)[0] - expected
    assert np.sqrt(np.mean(error**2)) < 1.1 * math.sqrt(30 / 4) / turned.scale


def test_metrics_ride_along():
    encoding = Encoding.fit(20, 5, 10, 1.0, max_weight=200, coordinates=(Coordinate("loss", 100.0, resolution=0.01),))
    total = encoding.zeros()
    for i in range(10):
        total += encoding.encode(np.zeros(5, np.float32), {"loss": 1.25 * i}, 20 * i, SEED)
    assert encoding.decode(total, 10, SEED)[1] == {"weight": 900, "loss": pytest.approx(56.25, abs=0.05)}


def test_weights_saturate():
    encoding = Encoding.fit(24, 1, 3, 1.0, max_weight=10)
    values = np.ones(1, np.float32)
    total = encoding.encode(values, {}, 10**9, SEED)
    found, metrics = encoding.decode(total, 1, SEED)
    assert metrics == {"weight": 10}
    assert found[0] == pytest.approx(1.0, abs=1e-5)
    assert encoding.decode(encoding.encode(values, {}, 0, SEED), 1, SEED) == (0.0, {"weight": 0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
    encoding = Encoding.fit(20, 3, 3, 1.0)
    with pytest.raises(SecAggError, match="not finite"):
        encoding.encode(np.array([0, value, 0], np.float32), {}, 1, SEED)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0])
def test_bad_weights_are_refused(weight):
    with pytest.raises(SecAggError, match="weight"):
        Encoding.fit(20, 3, 3, 1.0, max_weight=5).encode(np.zeros(3, np.float32), {}, weight, SEED)


@pytest.mark.parametrize("values", [np.zeros(4, np.float32), np.zeros(3), np.zeros((3, 1), np.float32)])
def test_other_vectors_are_refused(values):
    with pytest.raises(SecAggError, match="float32"):
        Encoding.fit(20, 3, 3, 1.0).encode(values, {}, 1, SEED)


def test_impossible_encodings_do_not_construct():
    noise = NoisePlan(1.0, 3, 1)
    good = Encoding.fit(20, 10, 5, 1.0)
    with pytest.raises(SecAggError, match="wrap"):
        Encoding(20, 10, 5, 1.0, good.scale * 1.01)
    for options in (
        {"bits": 20, "length": 0, "cohort": 5, "clip": 1.0},
        {"bits": 20, "length": 5, "cohort": 0, "clip": 1.0},
        {"bits": 20, "length": 5, "cohort": 5, "clip": 0.0},
        {"bits": 20, "length": 5, "cohort": 5, "clip": math.nan},
        {"bits": 17, "length": 5, "cohort": 5, "clip": 1.0},
        {"bits": 16, "length": 5, "cohort": 50_000, "clip": 1.0},
        {"bits": 20, "length": 5, "cohort": 5, "clip": 1.0, "noise": noise},
        {"bits": 20, "length": 5, "cohort": 5, "clip": 1.0, "noise": noise, "rotate": True, "max_weight": 5},
    ):
        with pytest.raises(SecAggError):
            Encoding.fit(**options)


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_thirteen_bytes_a_value_suffice_from_vector_to_message(bits):
    """130 MB at 10M values; a mask held whole, or a float64 copy, would not fit."""
    import tracemalloc

    from privacy.secagg.masking import Mask, apply_masks
    from privacy.secagg.messages import Masked
    from privacy.secagg.planes import pack

    length = 1_500_000
    encoding = Encoding.fit(bits, length, 100, 1.0)
    values = np.full(length, 1e-4, np.float32)
    masks = [Mask(bytes([i]) * 32, 1) for i in range(4)]
    tracemalloc.start()
    words = encoding.encode(values, {}, 1, SEED)
    apply_masks(words, masks)
    message = Masked(0, bytes(32), pack(words, bits).data).to_bytes(bytes(32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 13 * length
    assert len(message) == Masked.OVERHEAD + encoding.wire_bytes == Masked.OVERHEAD + length * bits // 8
