"""Integers modulo 2^B on the wire, in planes: 2, 2.5, 3 or 4 bytes a value for B = 16, 20, 24, 32.

A plane of the low 16 bits comes first (little-endian). B = 24 adds a plane of bytes. B = 20 adds a plane of
nibbles: byte i holds the high bits of value i (low nibble) and of value i + ceil(d / 2) (high nibble), which
packs without gathering every second value.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privacy.secagg.masking import Words
from privacy.secagg.reasons import Reason, violation
from privacy.secagg.tiles import in_parts
from umbel.errors import SecAggError

BITS = (16, 20, 24, 32)
_TILE = 1 << 15


def word_dtype(bits: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The accumulator's dtype: masks modulo 2^16, or modulo 2^32 of which the wire keeps B bits."""
    if bits not in BITS:
        raise SecAggError(f"{bits} bits a value are not supported: use 16, 20, 24 or 32.")
    return np.dtype("<u2") if bits == 16 else np.dtype("<u4")


def packed_size(length: int, bits: int) -> int:
    """Bytes of ``length`` packed values."""
    word_dtype(bits)
    extra = {16: 0, 20: (length + 1) // 2, 24: length, 32: 2 * length}[bits]
    return 2 * length + extra


def pack(words: Words, bits: int) -> npt.NDArray[np.uint8]:
    """The low ``bits`` bits of every word, packed; a view of ``words`` where nothing has to move (16, 32)."""
    if words.dtype != word_dtype(bits):
        raise SecAggError(f"Words of {words.dtype} cannot be packed to {bits} bits: use {word_dtype(bits)}.")
    if bits in (16, 32):
        return words.view(np.uint8)
    length = len(words)
    out = np.empty(packed_size(length, bits), dtype=np.uint8)
    low, high = out[: 2 * length].view("<u2"), out[2 * length :]
    halves = words.view("<u2")[1::2]

    def lower(start: int, stop: int) -> None:
        np.copyto(low[start:stop], words[start:stop], casting="unsafe")

    in_parts(length, lower)
    if bits == 24:
        np.copyto(high, halves, casting="unsafe")
        return out
    half = (length + 1) // 2

    def nibbles(start: int, stop: int) -> None:
        for begin in range(start, stop, _TILE):
            end = min(stop, begin + _TILE)
            first = halves[begin:end].astype(np.uint8)
            first &= 15
            second = halves[half + begin : min(length, half + end)].astype(np.uint8)
            second <<= 4
            first[: len(second)] |= second
            high[begin:end] = first

    in_parts(half, nibbles)
    return out


def add_packed(accumulator: Words, payload: memoryview | bytes, bits: int) -> None:
    """Adds packed values to ``accumulator`` in place, tile by tile: no second vector is made.

    Raises:
        ProtocolViolation: the payload has not exactly the bytes of ``len(accumulator)`` values.
    """
    length = len(accumulator)
    if len(payload) != packed_size(length, bits):
        raise violation(
            Reason.MALFORMED,
            f"A masked vector has {len(payload)} bytes, expected {packed_size(length, bits)} for {length} values of "
            f"{bits} bits: both sides must use the same parameters.",
        )
    raw = np.frombuffer(payload, dtype=np.uint8)
    low, high = raw[: 2 * length].view("<u2"), raw[2 * length :]
    half = (length + 1) // 2

    def add(start: int, stop: int) -> None:
        for begin in range(start, stop, _TILE):
            end = min(stop, begin + _TILE)
            if bits == 20 and begin < half < end:
                _add_20(accumulator, low, high, half, begin, half)
                begin = half
            if bits == 20:
                _add_20(accumulator, low, high, half, begin, end)
            elif bits == 24:
                value = high[begin:end].astype(np.uint32)
                value <<= 16
                value |= low[begin:end]
                accumulator[begin:end] += value
            else:
                accumulator[begin:end] += raw.view(accumulator.dtype)[begin:end]

    in_parts(length, add)


def _add_20(accumulator: Words, low: Words, high: npt.NDArray[np.uint8], half: int, begin: int, end: int) -> None:
    second = begin >= half
    value = high[begin - half : end - half].astype(np.uint32) if second else high[begin:end].astype(np.uint32)
    if second:
        value >>= 4
    else:
        value &= 15
    value <<= 16
    value |= low[begin:end]
    accumulator[begin:end] += value


def signed(words: Words, bits: int) -> npt.NDArray[np.int64]:
    """Two's complement of the low ``bits`` bits: from -2^(B-1) to 2^(B-1) - 1, as int64."""
    value = words.astype(np.int64)
    value &= (1 << bits) - 1
    value -= (value >> (bits - 1)) << bits
    return value
