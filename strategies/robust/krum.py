"""Krum, Multi-Krum (Blanchard et al. 2017) and Bulyan (El Mhamdi et al. 2018, arXiv 1802.07927)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.robust.rule import Rule, combination, squared_distances, tiles
from umbel.adapter import Vector


def scores(distances: npt.NDArray[np.float64], f: int) -> npt.NDArray[np.float64]:
    """Each vector's sum of squared distances to its n - f - 2 nearest others; at least one other.

    Args:
        distances: pairwise squared distances, [n, n].
        f: corrupt vectors.
    """
    n = distances.shape[0]
    nearest = np.sort(distances + np.diag(np.full(n, np.inf)), axis=1)
    return np.asarray(nearest[:, : max(n - f - 2, 1)].sum(axis=1))


class Krum(Rule):
    """The one vector that lies closest to its n - f - 2 nearest neighbours."""

    name = "krum"

    def least(self, f: int) -> int:
        """2 f + 3 (theorem of the paper)."""
        return 2 * f + 3

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        return vectors[int(scores(squared_distances(vectors), f).argmin())].copy()


class MultiKrum(Krum):
    """The mean of the n - f vectors with the best Krum scores."""

    name = "multi-krum"

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        order = np.argsort(scores(squared_distances(vectors), f), kind="stable")
        chosen = np.zeros(len(vectors))
        chosen[order[: len(vectors) - f]] = 1.0 / (len(vectors) - f)
        return combination(vectors, chosen)


class Bulyan(Rule):
    """n - 2 f vectors chosen by repeated Krum, then in each coordinate the mean of those nearest the median.

    theta = n - 2 f vectors are chosen and theta - 2 f values averaged: no single coordinate can be moved far,
    which Krum alone allows in high dimension.
    """

    name = "bulyan"

    def least(self, f: int) -> int:
        """4 f + 3."""
        return 4 * f + 3

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        distances = squared_distances(vectors)
        left, chosen = list(range(len(vectors))), []
        for _ in range(len(vectors) - 2 * f):
            best = 0 if len(left) == 1 else int(scores(distances[np.ix_(left, left)], f).argmin())
            chosen.append(left.pop(best))
        kept = [vectors[i] for i in chosen]
        count = max(len(kept) - 2 * f, 1)
        result = np.empty(vectors[0].size, dtype=np.float32)
        for where, block in tiles(kept):
            ordered = np.sort(block.astype(np.float64), axis=0)
            gap = np.abs(ordered - np.median(ordered, axis=0))
            nearest = np.argsort(gap, axis=0, kind="stable")[:count]
            result[where] = np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)
        return result
