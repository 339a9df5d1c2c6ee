import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg import masking
from privacy.secagg.masking import Mask, apply_masks
from umbel.errors import SecAggError

# NIST SP 800-38A, F.5.1: CTR-AES128.
KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHER = bytes.fromhex(
    "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
    "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_nist_sp_800_38a_key_stream(dtype):
    words = np.zeros(64 // np.dtype(dtype).itemsize, dtype=dtype)
    apply_masks(words, [Mask(KEY + COUNTER, 1)])
    assert words.tobytes() == bytes(a ^ b for a, b in zip(PLAIN, CIPHER, strict=True))


@settings(max_examples=30)
@given(
    length=st.sampled_from([0, 1, 7, 8, 4095, 4097, 70_001]),
    dtype=st.sampled_from(["<u2", "<u4"]),
    seeds=st.lists(st.binary(min_size=32, max_size=32), max_size=4),
)
def test_masks_cancel_exactly_and_commute(length, dtype, seeds):
    words = np.arange(length).astype(dtype)
    original = words.copy()
    masks = [Mask(seed, 1 if i % 2 else -1) for i, seed in enumerate(seeds)]
    apply_masks(words, masks)
    apply_masks(words, [Mask(mask.seed, -mask.sign) for mask in reversed(masks)])
    assert np.array_equal(words, original)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_threads_and_tiles_do_not_change_the_stream(dtype, monkeypatch):
    length = 2 * (1 << 18) + 12_345  # enough for two threads
    masks = [Mask(secrets.token_bytes(16) + b"\xff" * 16, 1), Mask(secrets.token_bytes(32), -1)]
    one, two = np.zeros(length, dtype=dtype), np.zeros(length, dtype=dtype)
    apply_masks(one, masks, threads=1)
    apply_masks(two, masks, threads=2)
    assert np.array_equal(one, two)
    monkeypatch.setattr(masking, "TILE_BYTES", 1 << 12)
    three = np.zeros(length, dtype=dtype)
    apply_masks(three, masks, threads=2)
    assert np.array_equal(one, three)


def test_the_counter_wraps_at_2_to_128():
    # The first block of a stream that starts at the last counter, then the stream from counter zero.
    key = secrets.token_bytes(16)
    wrapped, zero = np.zeros(16, dtype="<u4"), np.zeros(12, dtype="<u4")
    apply_masks(wrapped, [Mask(key + b"\xff" * 16, 1)])
    apply_masks(zero, [Mask(key + bytes(16), 1)])
    assert np.array_equal(wrapped[4:], zero)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("value", [0, 12345])
def test_masked_words_are_uniform_whatever_the_value(dtype, value):
    words = np.full(1 << 19, value, dtype=dtype)
    apply_masks(words, [Mask(secrets.token_bytes(32), 1), Mask(secrets.token_bytes(32), -1)])
    for shift in range(0, 8 * words.itemsize, 8):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        mean = len(words) / 256
        assert ((counts - mean) ** 2 / mean).sum() < 390  # 255 degrees of freedom, p about 1e-7


def test_the_seed_entropy_attack_learns_nothing():
    """Flower 1.41 folds a 32-byte seed to 32 bits by XOR and expands it by a Mersenne Twister; few seeds to try.

    The attack on a vector of which the first values are known: find the seed that explains them, strip the mask
    and read the rest. It opens a vector masked that way, and must not open ours.
    """

    def folded(seed):
        value = 0
        for i in range(0, len(seed), 4):
            value ^= int.from_bytes(seed[i : i + 4], "little")
        return value

    def mersenne(seed32, size):
        return np.random.RandomState(seed32).randint(0, 2**32 - 1, size, dtype=np.int64).astype(np.uint32)

    def attack(masked, known):
        for guess in range(1 << 12):  # the attacker's lists, with the search space cut so that the test ends soon
            stripped = masked - mersenne(guess, len(masked))
            if np.array_equal(stripped[: len(known)], known):
                return stripped
        return None

    secret = np.arange(1000, 1040, dtype=np.uint32)
    seed = (1234).to_bytes(4, "little") + bytes(28)
    theirs = secret + mersenne(folded(seed), len(secret))
    assert np.array_equal(attack(theirs, secret[:4]), secret)
    ours = secret.copy()
    apply_masks(ours, [Mask(seed, 1)])
    assert attack(ours, secret[:4]) is None
    # And seeds that fold to the same 32 bits, which there give one mask, give unrelated ones here.
    swapped = bytes(4) + (1234).to_bytes(4, "little") + bytes(24)
    assert folded(swapped) == folded(seed)
    other = secret.copy()
    apply_masks(other, [Mask(swapped, 1)])
    assert np.count_nonzero(other == ours) < 3


def test_every_seed_bit_matters():
    base = np.zeros(64, dtype="<u4")
    seed = secrets.token_bytes(32)
    apply_masks(base, [Mask(seed, 1)])
    for bit in range(256):
        changed = (int.from_bytes(seed, "big") ^ (1 << bit)).to_bytes(32, "big")
        words = np.zeros(64, dtype="<u4")
        apply_masks(words, [Mask(changed, 1)])
        assert not np.array_equal(words, base)


@pytest.mark.parametrize(
    "words", [np.zeros(4), np.zeros(4, dtype=np.int32), np.zeros((2, 2), dtype=np.uint32), np.zeros(8, np.uint32)[::2]]
)
def test_other_vectors_are_refused(words):
    with pytest.raises(SecAggError):
        apply_masks(words, [Mask(bytes(32), 1)])


def test_bad_masks_are_refused():
    for seed, sign in ((bytes(31), 1), (bytes(32), 0)):
        with pytest.raises(SecAggError):
            Mask(seed, sign)
    assert "seed" not in repr(Mask(bytes(32), 1))
