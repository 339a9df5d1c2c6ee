"""Linear codecs: y = S v with a public random S of orthonormal rows, the same for the whole cohort in a round.

A sum of compressed vectors is the compressed sum, so these work under secure aggregation and with clipping:
||S v|| <= ||v||. ``back`` is S^T; (size / width) S^T S v is unbiased over the seed, and S^T S v alone is a projection,
which is what error feedback wants (Stich et al. 2018, arXiv 1809.07599: a contraction).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from umbel.adapter import Vector
from umbel.errors import StrategyError


class LinearCodec(ABC):
    """A family of matrices S, one for each vector size and round.

    Args:
        density: kept share of the size, in (0, 1].
        seed: public, the same at every participant.
    """

    name: str

    def __init__(self, density: float, seed: int = 0) -> None:
        if not 0 < density <= 1:
            raise StrategyError(f"A compression density of {density} is outside (0, 1]: 0.1 sends a tenth.")
        self.density, self.seed = density, seed

    def width(self, size: int) -> int:
        """Number of values sent for a vector of ``size``; at least 1 unless the vector is empty."""
        return min(size, max(math.ceil(self.density * size), 1)) if size else 0

    @abstractmethod
    def gain(self, size: int) -> float:
        """The factor that makes S^T S unbiased."""

    @abstractmethod
    def compress(self, vector: Vector, round_number: int) -> Vector:
        """S v: [width] float32."""

    @abstractmethod
    def back(self, small: Vector, size: int, round_number: int) -> Vector:
        """S^T y: [size] float32."""


class SharedMask(LinearCodec):
    """Keeps a random subset of coordinates (random-k with a shared seed, Konecny et al. 2016, arXiv 1610.05492)."""

    name = "sparsify"

    def gain(self, size: int) -> float:
        """size / width."""
        return size / max(self.width(size), 1)

    def compress(self, vector: Vector, round_number: int) -> Vector:
        """The kept coordinates, in order."""
        return vector[self._indices(vector.size, round_number)]

    def back(self, small: Vector, size: int, round_number: int) -> Vector:
        """Zeros with the kept coordinates in place."""
        result = np.zeros(size, dtype=np.float32)
        result[self._indices(size, round_number)] = small
        return result

    def _indices(self, size: int, round_number: int) -> npt.NDArray[np.int64]:
        return _subset(size, self.width(size), self.seed, round_number)


class HadamardSketch(LinearCodec):
    """Random signs, a block Hadamard rotation, then a shared random subset.

    (Suresh et al. 2017, arXiv 1611.00429, for the rotation.) The error spreads evenly over all coordinates instead of
    falling wholly on those that a mask drops. Blocks hold 4,096 values, fewer for short vectors.
    """

    name = "sketch"

    def gain(self, size: int) -> float:
        """Padded size / width."""
        return _padded(size) / max(self.width(size), 1)

    def compress(self, vector: Vector, round_number: int) -> Vector:
        """S v."""
        padded = np.zeros(_padded(vector.size), dtype=np.float32)
        padded[: vector.size] = vector
        padded *= _signs(padded.size, self.seed, round_number)
        rotated = _hadamard(padded, _block(vector.size))
        return rotated[_subset(padded.size, self.width(vector.size), self.seed, round_number)]

    def back(self, small: Vector, size: int, round_number: int) -> Vector:
        """S^T y."""
        padded = np.zeros(_padded(size), dtype=np.float32)
        padded[_subset(padded.size, self.width(size), self.seed, round_number)] = small
        return (_hadamard(padded, _block(size)) * _signs(padded.size, self.seed, round_number))[:size]


def _block(size: int) -> int:
    return min(4096, 1 << max(size - 1, 0).bit_length())


def _padded(size: int) -> int:
    block = _block(size)
    return -(-size // block) * block


@lru_cache(maxsize=4)
def _subset(size: int, width: int, seed: int, round_number: int) -> npt.NDArray[np.int64]:
    chosen = np.sort(np.random.default_rng([seed, round_number, 1]).choice(size, width, replace=False))
    chosen.setflags(write=False)
    return chosen


def _signs(size: int, seed: int, round_number: int) -> npt.NDArray[np.float32]:
    bits = np.random.default_rng([seed, round_number, 2]).integers(0, 2, size, dtype=np.int8)
    return (1 - 2 * bits).astype(np.float32)


def _hadamard(vector: Vector, block: int) -> Vector:
    """The orthonormal Walsh-Hadamard transform of each block; its own inverse."""
    x = vector.reshape(-1, block)
    step = 1
    while step < block:
        pairs = x.reshape(x.shape[0], -1, 2, step)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(-1, block)
        step *= 2
    return np.asarray(x.reshape(-1) / np.float32(math.sqrt(block)), dtype=np.float32)
