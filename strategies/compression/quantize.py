"""Stochastic quantization to a few bits a value (QSGD, Alistarh et al. 2017, arXiv 1610.02132, with block scales).

    q = floor(x Q / m + u),  u uniform in [0, 1),  Q = 2^(bits - 1) - 1,  m = max |x| of the block;   x ~ q m / Q

Unbiased, error below m / Q in each value, and zero stays zero. For uploads in plain; under secure aggregation the
masked encoding has its own rounding and this would add nothing.

With error feedback u is 1/2 instead. Rounding to the nearest level is biased, but never moves a value by more than its
own size: a contraction, as error feedback wants it (Karimireddy et al. 2019). The variance of unbiased rounding to few
bits would pile up in the memory.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from umbel.adapter import Vector
from umbel.errors import StrategyError, WireError

_HEADER = struct.Struct("<4sBxHQ")
_MAGIC = b"UQ01"
_MOST = 1 << 34


class StochasticQuantizer:
    """Vectors to bytes and back; ``len`` of the result is what travels.

    Args:
        bits: of each value, 2 to 16.
        block: values that share a scale, 16 to 65,535.
        nearest: round to the nearest level instead of at random, for error feedback.
    """

    def __init__(self, bits: int = 8, block: int = 1024, *, nearest: bool = False) -> None:
        if not (2 <= bits <= 16 and 16 <= block <= 65535):
            raise StrategyError(
                f"Quantization to {bits} bits in blocks of {block} is not possible: use 2 to 16 bits and blocks of 16 "
                "to 65535."
            )
        self.bits, self.block, self.nearest = bits, block, nearest

    def encoded_bytes(self, size: int) -> int:
        """Length of the encoding of ``size`` values."""
        blocks = -(-size // self.block)
        return _HEADER.size + 4 * blocks + (size * self.bits + 7) // 8

    def encode(self, vector: Vector, seed: int) -> bytes:
        """Header, float32 scale of each block, packed values.

        Args:
            vector: finite float32 values.
            seed: of random rounding; another for every client and round. It carries no privacy.

        Raises:
            StrategyError: a value is not finite.
        """
        if not bool(np.isfinite(vector).all()):
            raise StrategyError("A vector with a value that is not finite cannot be quantized: reject it first.")
        most = 2 ** (self.bits - 1) - 1
        padded = np.zeros(-(-vector.size // self.block) * self.block, dtype=np.float32)
        padded[: vector.size] = vector
        blocks = padded.reshape(-1, self.block)
        scales = np.abs(blocks).max(axis=1, initial=0.0).astype(np.float32)
        safe = np.maximum(scales, np.finfo(np.float32).tiny)[:, None].astype(np.float64)
        shift = 0.5 if self.nearest else np.random.default_rng(seed).random(blocks.shape, dtype=np.float32)
        ratio = blocks / safe * most + shift
        levels = np.clip(np.floor(ratio), -most, most).astype(np.int32).ravel()[: vector.size] + most
        header = _HEADER.pack(_MAGIC, self.bits, self.block, vector.size)
        return b"".join((header, scales.astype("<f4").tobytes(), _pack(levels.astype(np.uint16), self.bits)))

    @staticmethod
    def decode(data: bytes, size: int | None = None) -> Vector:
        """Reads :meth:`encode`, whatever its bits and block.

        Args:
            data: as it arrived.
            size: values that are expected, or None to take as many as the header says. Decoding takes some 30 bytes a
                value, of which a few bits travel: give it for data of somebody else.

        Raises:
            WireError: truncated, too long, of another format or number of values, or with a scale that is no finite
                number >= 0.
        """
        if len(data) < _HEADER.size:
            raise WireError("A quantized vector is shorter than its header: it was truncated on the way.")
        magic, bits, block, found = _HEADER.unpack_from(data)
        if magic != _MAGIC or not (2 <= bits <= 16 and block >= 16) or found > _MOST:
            raise WireError("A quantized vector has an unknown format: both ends must run the same version of umbel.")
        if size is not None and found != size:
            raise WireError(f"A quantized vector has {found} values, expected {size}: both ends must train the same.")
        blocks = -(-found // block)
        if len(data) != _HEADER.size + 4 * blocks + (found * bits + 7) // 8:
            raise WireError("A quantized vector has another length than its header says: it was altered on the way.")
        scales = np.frombuffer(data, dtype="<f4", count=blocks, offset=_HEADER.size)
        if not bool((np.isfinite(scales) & (scales >= 0)).all()):
            raise WireError("A quantized vector holds a scale that is not a finite number of at least 0: reject it.")
        most = 2 ** (bits - 1) - 1
        levels = _unpack(data[_HEADER.size + 4 * blocks :], bits, found).astype(np.int32) - most
        if bool((levels > most).any()):
            raise WireError("A quantized vector holds a level above its largest: it was altered on the way.")
        values = levels.astype(np.float64) * np.repeat(scales.astype(np.float64) / most, block)[:found]
        return np.asarray(values, dtype=np.float32)


def _pack(levels: npt.NDArray[np.uint16], bits: int) -> bytes:
    """``bits`` low bits of each value, least significant first, without gaps."""
    if bits == 8:
        return levels.astype(np.uint8).tobytes()
    if bits == 16:
        return levels.astype("<u2").tobytes()
    parts = []
    for start in range(0, levels.size, 1 << 16):
        chunk = levels[start : start + (1 << 16)]
        planes = (chunk[:, None] >> np.arange(bits, dtype=np.uint16)) & 1
        parts.append(np.packbits(planes.astype(np.uint8).ravel(), bitorder="little").tobytes())
    return b"".join(parts)


def _unpack(data: bytes, bits: int, size: int) -> npt.NDArray[np.uint16]:
    if bits == 8:
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
    if bits == 16:
        return np.frombuffer(data, dtype="<u2").astype(np.uint16)
    result = np.empty(size, dtype=np.uint16)
    for start in range(0, size, 1 << 16):
        count = min(1 << 16, size - start)
        first = start * bits // 8
        raw = np.frombuffer(data, dtype=np.uint8, count=(count * bits + 7) // 8, offset=first)
        planes = np.unpackbits(raw, count=count * bits, bitorder="little").reshape(count, bits).astype(np.uint16)
        result[start : start + count] = (planes << np.arange(bits, dtype=np.uint16)).sum(axis=1)
    return result
