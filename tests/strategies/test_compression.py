import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import Upload
from strategies.compression.compressed import Compressed
from strategies.compression.feedback import ErrorFeedback
from strategies.compression.linear import HadamardSketch, SharedMask
from strategies.compression.quantize import StochasticQuantizer
from strategies.registry import make_strategy
from umbel.errors import StrategyError, WireError

CODECS = [SharedMask, HadamardSketch]


@pytest.mark.parametrize("kind", CODECS)
@given(seed=st.integers(0, 100), size=st.sampled_from([1, 2, 7, 300, 5000]), density=st.floats(0.01, 1))
def test_linear_codecs_have_orthonormal_rows(kind, seed, size, density):
    codec, rng = kind(density, seed), np.random.default_rng(seed)
    a, b = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    sa, sb = codec.compress(a, 3), codec.compress(b, 3)
    assert sa.shape == (codec.width(size),)
    np.testing.assert_allclose(codec.compress(a + b, 3), sa + sb, atol=1e-4)
    back = codec.back(sa, size, 3)
    assert float(back @ b) == pytest.approx(float(sa @ sb), abs=1e-2 * size**0.5)
    assert np.linalg.norm(sa) <= np.linalg.norm(a) * (1 + 1e-5)
    if codec.width(size) < size // 2 and size > 100:
        assert not np.allclose(codec.compress(a, 3), codec.compress(a, 4))


@pytest.mark.parametrize("kind", CODECS)
def test_linear_codecs_are_unbiased_over_rounds(kind):
    vector = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    codec = kind(0.3)
    runs = [codec.gain(50) * codec.back(codec.compress(vector, r), 50, r) for r in range(3000)]
    np.testing.assert_allclose(np.mean(runs, axis=0), vector, atol=0.2)
    biased = np.mean(runs, axis=0) / codec.gain(50)
    assert np.abs(biased - vector).max() > 0.2


@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 16),
    block=st.sampled_from([16, 1000, 1024]),
    size=st.sampled_from([0, 1, 15, 1024, 3001]),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e20]),
)
def test_quantizer_round_trip_error_and_true_length(seed, bits, block, size, scale):
    vector = (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)
    codec = StochasticQuantizer(bits, block)
    data = codec.encode(vector, seed)
    assert len(data) == codec.encoded_bytes(size)
    back = StochasticQuantizer.decode(data)
    assert back.shape == vector.shape
    limit = np.abs(vector).max(initial=0) / (2 ** (bits - 1) - 1)
    assert np.all(np.abs(back - vector) <= limit * (1 + 1e-4))
    np.testing.assert_array_equal(back[vector == 0], 0)


def test_quantizer_is_unbiased_and_nearest_rounding_would_not_be():
    vector = np.array([1.0, 0.3, -0.3, 0.05], dtype=np.float32)
    codec = StochasticQuantizer(2, 16)
    mean = np.mean([codec.decode(codec.encode(vector, s)) for s in range(4000)], axis=0)
    np.testing.assert_allclose(mean, vector, atol=0.04)
    assert np.abs(np.round(vector) - vector).max() > 0.2


def test_quantizer_saves_bytes():
    assert StochasticQuantizer(8).encoded_bytes(100_000) < 0.26 * 400_000
    assert StochasticQuantizer(4).encoded_bytes(100_000) < 0.13 * 400_000


def test_broken_bytes_are_refused():
    codec = StochasticQuantizer(5, 16)
    data = codec.encode(np.arange(40, dtype=np.float32), 0)
    for bad in (b"", data[:10], data[:-1], data + b"x", b"XXXX" + data[4:]):
        with pytest.raises(WireError):
            codec.decode(bad)
    with pytest.raises(WireError, match="scale"):
        codec.decode(data[:16] + np.float32(np.nan).tobytes() + data[20:])
    with pytest.raises(WireError, match="level"):
        codec.decode(data[:-20] + b"\xff" * 20)
    huge = data[:8] + (2**60).to_bytes(8, "little") + data[16:]
    with pytest.raises(WireError):
        codec.decode(huge)
    with pytest.raises(StrategyError, match="finite"):
        codec.encode(np.array([np.inf], np.float32), 0)
    for bits, block in ((1, 64), (17, 64), (8, 4)):
        with pytest.raises(StrategyError):
            StochasticQuantizer(bits, block)
    with pytest.raises(StrategyError, match="density"):
        SharedMask(0)


def test_another_number_of_values_than_expected_is_refused_before_it_is_decoded():
    data = StochasticQuantizer(2, 16).encode(np.zeros(100, np.float32), 0)
    assert StochasticQuantizer.decode(data, 100).size == StochasticQuantizer.decode(data).size == 100
    with pytest.raises(WireError, match="has 100 values, expected 99"):
        StochasticQuantizer.decode(data, 99)


@pytest.mark.parametrize("kind", CODECS)
def test_compressed_rounds_send_less_and_full_density_changes_nothing(bench, kind):
    case = bench.case(1)
    plain, _, _ = bench.round(make_strategy("ffa-lora"), case)
    whole, _, _ = bench.round(Compressed(make_strategy("ffa-lora"), SharedMask(1.0)), case)
    np.testing.assert_allclose(plain.adapter, whole.adapter, atol=1e-5)
    strategy = Compressed(make_strategy("ffa-lora"), kind(0.25))
    full = make_strategy("ffa-lora").upload_spec(case.spec, 1).size
    assert strategy.upload_spec(case.spec, 1).size == -(-full // 4)
    small, _, _ = bench.round(strategy, case)
    assert not np.allclose(small.adapter, plain.adapter, atol=1e-3)


@pytest.mark.parametrize("kind", CODECS)
def test_error_feedback_loses_nothing_in_the_long_run(bench, kind):
    spec = bench.spec()
    move = bench.fresh(spec, 3)
    arrived = {}
    for feedback in (True, False):
        strategy = Compressed(make_strategy("fedit"), kind(0.3), error_feedback=feedback)
        state, kept = strategy.initial(spec, spec.zeros()), {}
        for r in range(1, 41):
            client = strategy.begin(spec, state.adapter, r, {}, kept)
            upload = client.finish(client.start + move, steps=1, learning_rate=1.0)
            strategy.upload_spec(spec, r).check(upload)
            kept = client.keep(client.start + move)
            state = strategy.step_individual(spec, [Upload(upload, 1.0, 3)], state, r)
        arrived[feedback] = bench.error(state.adapter / 40, move)
    assert arrived[True] < 0.15
    assert arrived[False] > 1.3 * arrived[True]


def test_error_feedback_with_quantization_and_a_clip():
    codec, rng = StochasticQuantizer(2, 16), np.random.default_rng(0)
    vector = (rng.standard_normal(64) * 0.01).astype(np.float32)
    feedback, total = ErrorFeedback(), np.zeros(64)
    for r in range(200):
        wanted = feedback.add(vector)
        sent = wanted / max(1.0, float(np.linalg.norm(wanted)))
        assert np.linalg.norm(sent) <= 1 + 1e-6
        arrived = codec.decode(codec.encode(sent.astype(np.float32), r))
        feedback.update(sent.astype(np.float32), arrived)
        feedback = ErrorFeedback(feedback.keep())
        total += arrived
    np.testing.assert_allclose(total / 200, vector, atol=2e-3)
    assert ErrorFeedback().keep() == {}
    np.testing.assert_array_equal(ErrorFeedback({"compression.error": np.ones(3, np.float32)}).add(vector), vector)
