"""Metrics inside the masked vector: bounded numbers as exact integers, cut into digits that cannot overflow.

With secure aggregation on, example counts, losses, correct counts and clipping indicators are no fields of
a reply: only their sums over the survivors can be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umbel.errors import SecAggError


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One number that every client adds to the sum.

    Attributes:
        name: unique within a round.
        upper: largest value; a larger one, +inf included, counts as ``upper``.
        lower: smallest value; a smaller one counts as ``lower``.
        resolution: step; values are rounded to the nearest multiple above ``lower``, so the sum of n clients
            is off by at most n * resolution / 2, and exact for integers at the default of 1.
    """

    name: str
    upper: float
    lower: float = 0.0
    resolution: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.upper, self.lower, self.resolution)
        if not all(math.isfinite(x) for x in numbers) or self.lower >= self.upper or self.resolution <= 0:
            raise SecAggError(
                f"Coordinate {self.name!r} has no usable range: give finite bounds, the lower below the upper, and a "
                "positive resolution."
            )
        if self.levels >= 1 << 52:
            raise SecAggError(f"Coordinate {self.name!r} has more than 2^52 levels: use a coarser resolution.")

    @property
    def levels(self) -> int:
        """The largest integer that stands for a value."""
        return math.ceil((self.upper - self.lower) / self.resolution)


class Coordinates:
    """The layout of all coordinates of a round.

    Args:
        items: in order; may be empty.
        bits: B, of the modulus 2^B.
        cohort: most clients whose digits are added.

    Raises:
        SecAggError: a name stands twice, or so many clients cannot add even one bit.
    """

    def __init__(self, items: Sequence[Coordinate], bits: int, cohort: int) -> None:
        names = [item.name for item in items]
        if len(set(names)) != len(names):
            raise SecAggError("Two coordinates of a round have the same name: names must be unique.")
        self.items = tuple(items)
        self.digit_bits = (((1 << (bits - 1)) - 1) // cohort + 1).bit_length() - 1
        if self.digit_bits < 1:
            raise SecAggError(
                f"{cohort} clients cannot add one bit each in {bits} bits without overflow: raise secagg.bits."
            )
        self.digits = tuple(max(1, -(-item.levels.bit_length() // self.digit_bits)) for item in items)
        self.width = sum(self.digits)

    def pack(self, values: Mapping[str, float]) -> npt.NDArray[np.int64]:
        """The digits of one client's values, least significant first.

        Raises:
            SecAggError: a name is missing or unknown, or a value is NaN.
        """
        names = {item.name for item in self.items}
        if names != set(values):
            raise SecAggError(
                f"The metrics {sorted(values)} are not the coordinates of the round {sorted(names)}: "
                "give exactly these."
            )
        out: list[int] = []
        for item, count in zip(self.items, self.digits, strict=True):
            value = float(values[item.name])
            if math.isnan(value):
                raise SecAggError(f"Metric {item.name!r} is not a number: find the broken batch before sending.")
            cut = min(max(value, item.lower), item.upper)
            level = min(item.levels, round((cut - item.lower) / item.resolution))
            out += [(level >> (self.digit_bits * place)) & ((1 << self.digit_bits) - 1) for place in range(count)]
        return np.array(out, dtype=np.int64)

    def unpack(self, sums: npt.NDArray[np.int64], survivors: int) -> dict[str, float]:
        """Sums by name over ``survivors`` clients, from the sums of their digits."""
        result, place = {}, 0
        for item, count in zip(self.items, self.digits, strict=True):
            total = sum(int(sums[place + i]) << (self.digit_bits * i) for i in range(count))
            result[item.name] = total * item.resolution + survivors * item.lower
            place += count
        return result
