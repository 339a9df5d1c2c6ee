"""Which rows of a layer's input belong to which lane, and how they are cut into pieces of equal lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from umbel.errors import ModelError
from umbel.rows import RowMap, Rows

Piece = tuple[int, int, int, int]
"""First and past-the-last owner, first and past-the-last leading row; all its owners own equally many rows."""


class UnmappedRows(ModelError):
    """A layer's rows cannot be matched to lanes.

    Attributes:
        late: whether a step had been made before it was found.
    """

    late = False


@dataclass(frozen=True, eq=False)
class Owners:
    """Leading rows of one layout divided among owners (lanes, or examples) in their order.

    Attributes:
        counts: rows of each owner; 0 is allowed.
    """

    counts: tuple[int, ...]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Runs of neighbouring owners with equal counts, those without rows left out."""
        found: list[Piece] = []
        row = 0
        for owner, count in enumerate(self.counts):
            if found and found[-1][1] == owner and found[-1][3] - found[-1][2] == count * (owner - found[-1][0]):
                first, _, start, _ = found[-1]
                found[-1] = (first, owner + 1, start, row + count)
            elif count:
                found.append((owner, owner + 1, row, row + count))
            row += count
        return tuple(found)

    @cached_property
    def index(self) -> Tensor:
        """int64 [rows], the owner of each row."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts, dtype=torch.int64))

    @property
    def whole(self) -> bool:
        """Every owner owns the same number of rows, at least one."""
        return len(self.pieces) == 1 and self.pieces[0][:2] == (0, len(self.counts))


class LaneRows:
    """Lanes and examples behind the rows of one joint batch, whose examples stand lane by lane.

    Args:
        rows: owners by example.
        sizes: examples of each lane, their sum being ``rows.size``; 0 is allowed.
    """

    def __init__(self, rows: RowMap, sizes: Sequence[int]) -> None:
        self._rows = rows
        self._sizes = sizes
        self._known: dict[int, tuple[Rows, Owners, Owners]] = {}
        self._found: dict[tuple[str, tuple[int, ...]], tuple[Owners, Owners, bool]] = {}

    def of(self, module: str, shape: Sequence[int]) -> tuple[Owners, Owners, bool]:
        """Lanes and examples behind the leading rows of an input of ``shape`` to ``module``, and if rows are text.

        Raises:
            UnmappedRows: the map does not know the layer, or rows of one example do not lie together.
        """
        key = (module, tuple(shape[:-1]))
        found = self._found.get(key)
        if found is None:
            try:
                rows = self._rows.rows_of(module, shape)
            except ModelError as error:
                raise UnmappedRows(str(error)) from None
            rule = next(rule for rule in self._rows.rules if rule.fits(module))
            found = self._found[key] = (*self._divide(rows), rule.part == "")
        return found

    def _divide(self, rows: Rows) -> tuple[Owners, Owners]:
        known = self._known.get(id(rows))
        if known is None:
            if rows.order is not None:
                raise UnmappedRows("Rows of different examples are mixed, so lanes are no blocks: train one by one.")
            start, lanes = 0, []
            for size in self._sizes:
                lanes.append(sum(rows.counts[start : start + size]))
                start += size
            known = self._known[id(rows)] = (rows, Owners(tuple(lanes)), Owners(rows.counts))
        return known[1], known[2]
