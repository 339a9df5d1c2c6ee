"""Banded Toeplitz strategy matrices for the prefix-sum workload.

The mechanism releases every prefix sum A G of the clipped, summed gradients G as B (C G + Z) with A = B C:
equivalently, step t's gradient gets the noise (C^-1 Z)_t. Sources: Denisov et al. 2022 (arXiv 2202.08312);
Choquette-Choo et al. 2023, banded matrices and min-separation (arXiv 2306.08153); McKenna 2024, Toeplitz at
scale (arXiv 2405.15913).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.signal import lfilter

from umbel.errors import PlanError

Vector64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BandedMatrix:
    """Lower-triangular Toeplitz C of ``steps`` rows with ``coefficients`` on its diagonals.

    Attributes:
        coefficients: c_0 = 1, c_1, ..., c_(b-1).
        steps: number of steps, all rounds together.
        separation: a unit's participations are at least this many steps apart.
    """

    coefficients: tuple[float, ...]
    steps: int
    separation: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.separation < 1:
            raise PlanError(
                f"A noise matrix has {self.steps} steps and separation {self.separation}, expected at least 1 each: "
                "check rounds, steps and batch size."
            )
        if not self.coefficients or self.coefficients[0] != 1 or not np.isfinite(self.coefficients).all():
            raise PlanError("A noise matrix must start with the coefficient 1 and be finite: build it with optimised.")
        if self.bands > self.separation:
            raise PlanError(
                f"Noise with {self.bands} bands needs participations at least as many steps apart, but an epoch has "
                f"{self.separation} steps: lower privacy.bands or the batch size."
            )

    @property
    def bands(self) -> int:
        """b: the generator remembers b - 1 vectors."""
        return len(self.coefficients)

    @property
    def participations(self) -> int:
        """Most steps that one unit takes part in: ceil(steps / separation)."""
        return -(-self.steps // self.separation)

    @property
    def sensitivity(self) -> float:
        """L2 norm of C u over all contributions u of one unit with ||u_t|| <= 1 at its steps.

        Participations are at least ``bands`` apart, so the columns they meet do not overlap and are orthogonal,
        and the norm is exactly sqrt(sum over participations of a column's squared norm), whatever the directions
        of u (Choquette-Choo et al. 2023, theorem 2). Columns cut off at the bottom are shorter: participations
        are best placed as early as possible.
        """
        squares = np.cumsum(np.square(self.coefficients))
        total = 0.0
        for start in range(0, self.steps, self.separation):
            total += squares[min(self.bands, self.steps - start) - 1]
        return math.sqrt(total)

    @property
    def error(self) -> float:
        """Root mean squared error of a prefix sum per unit noise multiplier and clipping norm."""
        workload = lfilter([1.0], self.coefficients, np.ones(self.steps))
        weight = np.arange(self.steps, 0, -1)
        return self.sensitivity * math.sqrt(float(weight @ (workload * workload)) / self.steps)

    def dense(self) -> Vector64:
        """C as a [steps, steps] float64 array, for inspection of small ones."""
        matrix = np.zeros((self.steps, self.steps))
        for offset, value in enumerate(self.coefficients[: self.steps]):
            matrix += np.diag(np.full(self.steps - offset, value), -offset)
        return matrix


@lru_cache(maxsize=64)
def optimised(steps: int, separation: int, bands: int) -> BandedMatrix:
    """The banded Toeplitz matrix with the least mean squared error over all prefix sums.

    Minimises log(sensitivity^2) + log ||A C^-1||_F^2 over c_1..c_(b-1) by L-BFGS, from the first coefficients of the
    matrix square root of A, binom(2j, j) / 4^j (Fichtenberger et al. 2022). One band gives independent noise.

    Args:
        steps: number of steps, at least 1.
        separation: steps of an epoch, at least 1.
        bands: wanted bands, cut to the separation and to ``steps``.

    Raises:
        PlanError: an argument below 1.
    """
    if min(steps, separation, bands) < 1:
        raise PlanError(
            f"A noise matrix of {steps} steps, separation {separation} and {bands} bands was asked for: "
            "all must be at least 1."
        )
    bands = min(bands, separation, steps)
    ratios = np.array([1.0, *((2 * j - 1) / (2 * j) for j in range(1, bands))], dtype=np.float64)
    square_root = np.cumprod(ratios, dtype=np.float64)
    if bands == 1:
        return BandedMatrix((1.0,), steps, separation)
    weight = np.arange(steps, 0, -1, dtype=np.float64)
    # Squared sensitivity is sum_j meets_j c_j^2: columns that start too late are cut off.
    starts = np.arange(0, steps, separation)
    meets = np.array([(starts + j < steps).sum() for j in range(bands)], dtype=np.float64)

    def loss(tail: Vector64) -> tuple[float, Vector64]:
        c = np.concatenate([[1.0], tail])
        with np.errstate(over="ignore", invalid="ignore"):
            workload = lfilter([1.0], c, np.ones(steps))  # coefficients of A C^-1
            error, norm = float(weight @ (workload * workload)), float(meets @ (c * c))
            if not math.isfinite(error):
                return 1e30, np.zeros_like(tail)
            # d(1/c)/dc_j = -x^j / c^2 as power series in x.
            inner = lfilter([1.0], c, workload)
            pull = weight * workload
            slope = np.array([-2.0 * float(pull[j:] @ inner[: steps - j]) for j in range(1, bands)])
        return math.log(norm) + math.log(error), 2 * meets[1:] * tail / norm + slope / error

    found = minimize(loss, square_root[1:], jac=True, method="L-BFGS-B", options={"maxiter": 500})
    best = found.x if found.fun <= loss(square_root[1:])[0] else square_root[1:]
    return BandedMatrix((1.0, *map(float, best)), steps, separation)
