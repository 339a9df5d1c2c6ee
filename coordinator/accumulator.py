"""An order-independent sum of weighted float32 vectors.

Floating-point addition depends on the order, and replies arrive in any. Values are therefore first
rounded to a fixed grid of 2^-38, on which float64 additions below 2^14 are exact: whatever the order
of arrival, the last bit of the sum is the same. One float64 vector is all the memory it takes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from umbel.adapter import Vector
from umbel.errors import AdapterError

_GRID_BITS = 38
_LIMIT = 2.0 ** (52 - _GRID_BITS)
_ROUND = 1.5 * 2.0 ** (52 - _GRID_BITS)
_TILE = 1 << 14


class ExactAccumulator:
    """Sums weight times vector exactly on the grid; the rounding error of one addend is at most 2^-39.

    Weights are divided by ``unit``, a power of two, so that example counts stay below the limit.
    """

    def __init__(self, size: int, *, unit: float = 1.0) -> None:
        self._sum = np.zeros(size, dtype=np.float64)
        self._unit = unit
        self._weight = 0.0
        self._bound = 0.0
        self.count = 0

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return self._weight

    def add(self, vector: Vector, weight: float) -> None:
        """Adds ``weight * vector``.

        Args:
            vector: finite float32 of the accumulator's size; it is not changed.
            weight: positive and finite.

        Raises:
            AdapterError: the length differs, a value is not finite, the weight is not positive, or values are so
                large that the sum could leave the exact range; the sum is then unchanged.
        """
        if vector.shape != self._sum.shape:
            raise AdapterError(f"An update has {vector.size} values, expected {self._sum.size}: check the spec hash.")
        if not (np.isfinite(weight) and weight > 0):
            raise AdapterError(f"An update's weight is {weight}, expected a positive number: the client has no data.")
        scale = weight / self._unit
        peak = float(np.abs(vector).max()) if vector.size else 0.0
        if not np.isfinite(peak):
            raise AdapterError("An update holds a value that is not finite: the client's training diverged.")
        if self._bound + peak * scale >= _LIMIT / 2:
            raise AdapterError(f"An update has a value of size {peak:.3g}: lower train.learning-rate, it diverges.")
        self._bound += peak * scale
        self._weight += weight
        self.count += 1
        tile = np.empty(min(_TILE, max(vector.size, 1)), dtype=np.float64)
        for start in range(0, vector.size, _TILE):
            part = vector[start : start + _TILE]
            work = tile[: part.size]
            np.multiply(part, scale, out=work, dtype=np.float64)  # else numpy would round to float32 first
            work += _ROUND  # adding and taking away 1.5 * 2^14 rounds to the grid
            work -= _ROUND
            self._sum[start : start + _TILE] += work

    def merge(self, other: ExactAccumulator) -> None:
        """Adds what another accumulator summed, perhaps in another process: the same bits as one after the other.

        Raises:
            AdapterError: sizes or units differ, or the sum could leave the exact range; nothing is then changed.
        """
        if other._sum.shape != self._sum.shape or other._unit != self._unit:
            raise AdapterError("Two partial sums have another layout: make them for one round of one run.")
        if self._bound + other._bound >= _LIMIT / 2:
            raise AdapterError("The updates of a round are too large to be summed: lower train.learning-rate.")
        self._sum += other._sum
        self._bound += other._bound
        self._weight += other._weight
        self.count += other.count

    def export(self) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
        """What :meth:`restore` takes: numbers, and the sum itself (not a copy)."""
        head = {"unit": self._unit, "weight": self._weight, "bound": self._bound, "count": float(self.count)}
        return head, self._sum

    @classmethod
    def restore(cls, head: dict[str, float], values: npt.NDArray[np.float64]) -> ExactAccumulator:
        """The accumulator of which :meth:`export` told.

        Raises:
            AdapterError: the values are not one float64 vector of finite numbers.
        """
        if values.ndim != 1 or values.dtype != np.float64 or not bool(np.isfinite(values).all()):
            raise AdapterError("A partial sum cannot be read: both ends must run the same version of umbel.")
        made = cls(0, unit=head["unit"])
        made._sum = values.copy()
        made._weight, made._bound, made.count = head["weight"], head["bound"], int(head["count"])
        return made

    def total(self) -> npt.NDArray[np.float64]:
        """The weighted sum, a copy; zeros when nothing was added."""
        return self._sum * self._unit

    def mean(self) -> Vector:
        """The weighted mean as float32.

        Raises:
            AdapterError: nothing was added.
        """
        if self.count == 0:
            raise AdapterError("There is no update to average: no client's reply could be used.")
        result: npt.NDArray[np.float64] = self._sum * (self._unit / self._weight)
        return result.astype(np.float32)
