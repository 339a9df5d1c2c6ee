"""Rules by coordinate: median and trimmed mean (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

import numpy as np

from strategies.robust.rule import Rule, tiles
from umbel.adapter import Vector


class CoordinateMedian(Rule):
    """The median of each coordinate; of an even number, the mean of the middle two."""

    name = "median"

    def least(self, f: int) -> int:
        """2 f + 1: a majority of honest values."""
        return 2 * f + 1

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        result = np.empty(vectors[0].size, dtype=np.float32)
        for where, block in tiles(vectors):
            result[where] = np.median(block, axis=0)
        return result


class TrimmedMean(Rule):
    """The mean of each coordinate without its f smallest and f largest values."""

    name = "trimmed-mean"

    def least(self, f: int) -> int:
        """2 f + 1: something must be left."""
        return 2 * f + 1

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        result = np.empty(vectors[0].size, dtype=np.float32)
        n = len(vectors)
        for where, block in tiles(vectors):
            result[where] = np.sort(block, axis=0)[f : n - f].mean(axis=0, dtype=np.float64)
        return result
