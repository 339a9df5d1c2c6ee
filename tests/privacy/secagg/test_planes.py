import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.planes import add_packed, pack, packed_size, signed, word_dtype
from umbel.errors import ProtocolViolation, SecAggError


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 31, 32_769, 65_537, 600_001])
def test_packing_keeps_the_low_bits(bits, length):
    words = np.random.default_rng(length).integers(0, 1 << 32, length, dtype=np.uint32).astype(word_dtype(bits))
    packed = pack(words, bits)
    assert len(packed) == packed_size(length, bits)
    start = np.arange(length).astype(word_dtype(bits))
    total = start.copy()
    add_packed(total, packed.tobytes(), bits)
    assert np.array_equal(signed(total, bits), signed(start + words, bits))
    kept = total - start
    assert np.array_equal(kept & ((1 << bits) - 1), words & ((1 << bits) - 1))


def test_sizes_on_the_wire():
    assert [packed_size(1000, bits) / 1000 for bits in (16, 20, 24, 32)] == [2, 2.5, 3, 4]
    assert packed_size(3, 20) == 8


@given(st.sampled_from([16, 20, 24, 32]), st.data())
def test_twos_complement(bits, data):
    value = data.draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    noise = data.draw(st.integers(0, (1 << (32 - bits)) - 1)) << bits  # bits above B are ignored
    word = np.array([((value % (1 << bits)) + noise) % (1 << (16 if bits == 16 else 32))]).astype(word_dtype(bits))
    assert signed(word, bits)[0] == value


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_length_is_refused(extra):
    total = np.zeros(10, dtype=np.uint32)
    with pytest.raises(ProtocolViolation) as refused:
        add_packed(total, bytes(packed_size(10, 20) + extra), 20)
    assert refused.value.reason == "malformed"
    assert not total.any()


def test_other_bits_and_dtypes_are_refused():
    with pytest.raises(SecAggError, match="16, 20, 24 or 32"):
        word_dtype(18)
    with pytest.raises(SecAggError):
        pack(np.zeros(3, dtype=np.uint16), 20)
