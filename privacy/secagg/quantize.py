"""Unbiased stochastic rounding of a float32 vector to integers, fast.

A value is brought to fixed point with f fraction bits, f uniform random bits from AES-CTR (keyed by the
operating system's CSPRNG, fresh for each call) are added, and the fraction is shifted away. The expectation
is the value rounded to a multiple of 2^-f, so the bias is at most 2^-(f+1) of one quantization step (f is
16 for small values and never below 8), beside the rounding of float32 itself. The variance is at most 1/4.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privacy.secagg.masking import Words
from privacy.secagg.tiles import in_parts
from umbel.errors import SecAggError

MAX_FRACTION = 16
_NARROW_FRACTION = 8
_TILE = 1 << 15


def fraction_bits(bound: float) -> int:
    """Fraction bits f for values of at most ``bound`` quantization steps."""
    narrow = 30 - max(0, math.ceil(math.log2(bound + 2.0)))
    return min(MAX_FRACTION, narrow) if narrow >= _NARROW_FRACTION else MAX_FRACTION


def l2_norm(values: npt.NDArray[np.float32]) -> float:
    """The Euclidean norm, accumulated in float64 over blocks; inf or NaN if a value is."""
    total, block = 0.0, 1 << 13
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(values), block):
            part = values[start : start + block]
            total += float(np.dot(part, part))
    if math.isinf(total) and bool(np.isfinite(values).all()):  # squares overflowed float32
        return float(np.linalg.norm(values.astype(np.float64)))
    return math.sqrt(total)


def quantize_into(
    words: Words, values: npt.NDArray[np.float32], factor: float, bound: float, *, threads: int | None = None
) -> None:
    """Writes stochastic roundings of ``values * factor``, in two's complement, over ``words``.

    Args:
        words: uint16 or uint32, as long as ``values``.
        values: float32, finite (the caller has seen a finite norm).
        factor: quantization steps a unit.
        bound: no value may exceed it in absolute value, in steps; larger ones are cut to it (float32 rounding
            can put a clipped value a hair above). Must fit the words: below 2^15 or 2^31.
        threads: None for every core.

    Raises:
        SecAggError: lengths differ or the bound does not fit.
    """
    if len(words) != len(values) or bound + 1 >= 2.0 ** (8 * words.itemsize - 1):
        raise SecAggError("Quantization needs words as many as values and a bound that fits them: lower the scale.")
    fraction = fraction_bits(bound)
    narrow = (bound + 2.0) * 2.0**fraction <= 2.0**30
    rounding = _quantize_narrow if narrow else _quantize_wide
    key, base = secrets.token_bytes(16), secrets.randbits(128)

    def part(start: int, stop: int) -> None:
        counter = (base + start * 2 // 16) % (1 << 128)
        cipher = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16, "big"))).encryptor()
        rounding(words[start:stop], values[start:stop], factor, bound, fraction, cipher)

    in_parts(len(values), part, threads)


def _quantize_narrow(
    words: Words, values: npt.NDArray[np.float32], factor: float, bound: float, fraction: int, cipher: CipherContext
) -> None:
    """Fixed point in int32."""
    scale, limit = np.float32(factor * 2.0**fraction), np.float32(bound * 2.0**fraction)
    scaled, fixed = np.empty(_TILE, dtype=np.float32), np.empty(_TILE, dtype=np.int32)
    raw, zeros = np.empty(2 * _TILE, dtype=np.uint8), bytes(2 * _TILE)
    random, view = raw.view("<u2"), raw.data
    target = words.view(np.int16 if words.itemsize == 2 else np.int32)
    for start in range(0, len(values), _TILE):
        part = values[start : start + _TILE]
        a, b, r = scaled[: len(part)], fixed[: len(part)], random[: len(part)]
        cipher.update_into(zeros, view)
        np.multiply(part, scale, out=a)
        np.clip(a, -limit, limit, out=a)
        np.rint(a, out=a)
        np.copyto(b, a, casting="unsafe")
        if fraction < MAX_FRACTION:
            r &= (1 << fraction) - 1
        np.add(b, r, out=b)
        np.right_shift(b, fraction, out=b)
        np.copyto(target[start : start + len(part)], b, casting="unsafe")


def _quantize_wide(
    words: Words, values: npt.NDArray[np.float32], factor: float, bound: float, fraction: int, cipher: CipherContext
) -> None:
    """Fixed point in int64, for bounds that leave int32 too little room."""
    raw, zeros = np.empty(2 * _TILE, dtype=np.uint8), bytes(2 * _TILE)
    random, view = raw.view("<u2"), raw.data
    target = words.view(np.int16 if words.itemsize == 2 else np.int32)
    for start in range(0, len(values), _TILE):
        part = values[start : start + _TILE].astype(np.float64)
        cipher.update_into(zeros, view)
        part *= factor
        np.clip(part, -bound, bound, out=part)
        part *= 2.0**fraction
        fixed = np.rint(part).astype(np.int64)
        fixed += random[: len(part)]
        fixed >>= fraction
        target[start : start + len(part)] = fixed
