"""What a robust rule is: many vectors in, one out, whatever a bounded number of them says.

No rule uses the clients' weights, save that weight 0 means absent: a corrupt client could claim any weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from strategies.base import Upload
from umbel.adapter import Vector
from umbel.errors import StrategyError

_TILE = 1 << 16

F64 = npt.NDArray[np.float64]


class Rule(ABC):
    """A robust rule for at most a share ``corrupt`` of corrupt vectors.

    Args:
        corrupt: share of vectors that may be anything, in [0, 0.5).
    """

    name: str

    def __init__(self, corrupt: float = 0.2) -> None:
        if not 0 <= corrupt < 0.5:
            raise StrategyError(f"No rule withstands a corrupt share of {corrupt}: it must be in [0, 0.5).")
        self.corrupt = corrupt

    def faults(self, n: int) -> int:
        """f: how many of ``n`` vectors may be corrupt, rounded up."""
        return math.ceil(self.corrupt * n - 1e-9)

    @abstractmethod
    def least(self, f: int) -> int:
        """The fewest vectors with which the rule withstands ``f`` corrupt ones."""

    def check(self, n: int) -> int:
        """f for ``n`` vectors.

        Raises:
            StrategyError: ``n`` vectors are too few for f.
        """
        f = self.faults(n)
        if n < self.least(f):
            raise StrategyError(
                f"The rule {self.name!r} needs at least {self.least(f)} uploads to withstand {f} corrupt ones and "
                f"has {n}: raise the cohort or lower the corrupt share."
            )
        return f

    def combine(self, uploads: Sequence[Upload]) -> Vector:
        """The robust aggregate, float32.

        Raises:
            StrategyError: too few uploads, lengths that differ, or a value that is not finite.
        """
        present = [u.vector for u in uploads if u.weight > 0]
        if not present:
            raise StrategyError("There are no uploads to aggregate: at least one client must answer.")
        if any(v.shape != present[0].shape for v in present):
            raise StrategyError("Uploads differ in length: robust rules need the same LoRA rank at every client.")
        if not all(bool(np.isfinite(v).all()) for v in present):
            raise StrategyError("An upload holds a value that is not finite: reject it before aggregation.")
        return self._combine(present, self.check(len(present)))

    @abstractmethod
    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        """The aggregate of checked vectors."""


def tiles(vectors: Sequence[Vector]) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Slices of the coordinates and the [n, tile] block of all vectors there: memory stays n tiles."""
    for start in range(0, vectors[0].size, _TILE):
        where = slice(start, min(start + _TILE, vectors[0].size))
        yield where, np.stack([v[where] for v in vectors])


def gram(vectors: Sequence[Vector]) -> F64:
    """Inner products [n, n] of the vectors minus their mean, float64: distances without cancellation."""
    n = len(vectors)
    total: F64 = np.zeros((n, n))
    for _, block in tiles(vectors):
        centred = block.astype(np.float64)
        centred -= centred.mean(axis=0)
        total += centred @ centred.T
    return total


def squared_distances(vectors: Sequence[Vector]) -> F64:
    """Pairwise squared distances [n, n], at least 0."""
    g = gram(vectors)
    d = np.diag(g)
    return np.asarray(np.maximum(d[:, None] + d[None, :] - 2 * g, 0.0))


def combination(vectors: Sequence[Vector], weights: npt.NDArray[np.float64]) -> Vector:
    """Sum of weights times vectors, float64 inside."""
    result = np.empty(vectors[0].size, dtype=np.float32)
    for where, block in tiles(vectors):
        result[where] = weights @ block.astype(np.float64)
    return result
