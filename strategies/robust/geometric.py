"""The geometric median (Pillutla et al. 2019, arXiv 1912.13445, algorithm 2) and norm bounding (Sun et al. 2019)."""

from __future__ import annotations

import numpy as np

from strategies.robust.rule import Rule, combination, gram
from umbel.adapter import Vector
from umbel.errors import StrategyError


class GeometricMedian(Rule):
    """The point with the least sum of distances to all vectors, by smoothed Weiszfeld iterations.

    All iterations run on the n x n inner products; the vectors are read twice in all.

    Args:
        corrupt: as for every rule; its breakdown point is one half.
        iterations: at most; stops when the weights move by less than 1e-10.
    """

    name = "geometric-median"

    def __init__(self, corrupt: float = 0.2, iterations: int = 1000) -> None:
        super().__init__(corrupt)
        self.iterations = iterations

    def least(self, f: int) -> int:
        """2 f + 1."""
        return 2 * f + 1

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        n, g = len(vectors), gram(vectors)
        weights = np.full(n, 1.0 / n)
        smooth = 1e-8 * max(float(np.sqrt(np.diag(g).max())), 1e-30)
        for _ in range(self.iterations):
            squared = np.diag(g) - 2 * (g @ weights) + weights @ g @ weights
            new = 1.0 / np.maximum(np.sqrt(np.maximum(squared, 0.0)), smooth)
            new /= new.sum()
            moved = float(np.abs(new - weights).max())
            weights = new
            if moved < 1e-10:
                break
        return combination(vectors, weights)


class NormBound(Rule):
    """The mean after scaling longer vectors down to a bound (Sun et al. 2019, arXiv 1911.07963).

    It limits what one client can do and removes nobody: unlike the other rules it lets f corrupt clients move the
    mean by at most f/n times the bound.

    Args:
        corrupt: share that may be corrupt, for the check of the cohort.
        bound: L2 norm; 0 takes the median norm of the round's uploads.
    """

    name = "norm-bound"

    def __init__(self, corrupt: float = 0.2, bound: float = 0.0) -> None:
        super().__init__(corrupt)
        if not (np.isfinite(bound) and bound >= 0):
            raise StrategyError(f"The norm bound {bound} is not a number of at least 0: 0 takes the median norm.")
        self.bound = bound

    def least(self, f: int) -> int:
        """2 f + 1, so that the median norm is an honest one."""
        return 2 * f + 1

    def _combine(self, vectors: list[Vector], f: int) -> Vector:
        norms = np.array([float(np.sqrt(np.square(v, dtype=np.float64).sum())) for v in vectors])
        bound = self.bound or float(np.median(norms))
        weights = np.minimum(1.0, bound / np.maximum(norms, 1e-300)) / len(vectors)
        return combination(vectors, weights)
