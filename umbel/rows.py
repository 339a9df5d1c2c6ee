"""RowMap: which example each row of each linear layer belongs to.

In a vision-language model the first dimension of an activation is not the example: in a vision tower it is
images, tiles or packed patches. Clipping each *row* then bounds nothing, because an example with four images
owns four of them. A ``RowMap`` is made once for a (micro)batch from its inputs and says, for a module's path and
the shape of its input, which example owns each leading row. It knows no model; the model's side builds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from umbel.errors import ModelError


@dataclass(frozen=True, eq=False)
class Rows:
    """Owners of the leading rows of one layout.

    Attributes:
        owners: int64 [rows], each in [0, size); rows of an example need not be neighbours.
        size: number of examples n; an example may own no row (text only).
    """

    owners: Tensor
    size: int

    def __post_init__(self) -> None:
        owners = self.owners
        if owners.ndim != 1 or owners.dtype != torch.int64:
            raise ModelError(
                f"Row owners have shape {tuple(owners.shape)} and dtype {owners.dtype}, expected one int64 number a "
                "row: build them with repeat_interleave of the example's index."
            )
        if owners.numel() and not (int(owners.min()) >= 0 and int(owners.max()) < self.size):
            raise ModelError(
                f"A row belongs to an example outside the batch of {self.size}: count the images of each example again."
            )

    @classmethod
    def repeated(cls, counts: Sequence[int]) -> Rows:
        """Example i owns the next ``counts[i]`` rows. Counts of 0 are allowed; negative ones are refused."""
        if any(count < 0 for count in counts):
            raise ModelError(f"Row counts {list(counts)} hold a negative number: give how many rows each example owns.")
        return cls(
            torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)), len(counts)
        )

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each example, [n]."""
        return tuple(torch.bincount(self.owners, minlength=self.size).tolist())

    @cached_property
    def order(self) -> Tensor | None:
        """Permutation that brings the rows of an example together, in order; None when they already are."""
        if self.owners.numel() < 2 or bool((self.owners[1:] >= self.owners[:-1]).all()):
            return None
        return torch.argsort(self.owners, stable=True)

    @cached_property
    def even(self) -> bool:
        """Every example owns the same number of rows, at least one."""
        return self.size > 0 and min(self.counts) == max(self.counts) > 0

    def __len__(self) -> int:
        return int(self.owners.numel())


@dataclass(frozen=True, eq=False)
class RowRule:
    """Layouts that occur inside one part of a model.

    Attributes:
        part: dotted path that must occur in a module's path ("vision_tower"); "" fits every module.
        layouts: told apart by their number of rows (patches before and after a merger); two of the same length
            must have the same owners.
    """

    part: str
    layouts: tuple[Rows, ...]

    def __post_init__(self) -> None:
        seen: dict[int, Rows] = {}
        for rows in self.layouts:
            other = seen.setdefault(len(rows), rows)
            if not torch.equal(other.owners, rows.owners):
                raise ModelError(
                    f"Two row layouts of {self.part or 'the model'!r} have {len(rows)} rows and different owners: use "
                    "the loop engine for this model."
                )

    def fits(self, module: str) -> bool:
        """Whether the module at this path lies inside the part."""
        return not self.part or f".{self.part}." in f".{module}."

    def find(self, rows: int) -> Rows | None:
        """The layout of this many rows."""
        return next((layout for layout in self.layouts if len(layout) == rows), None)


@dataclass(frozen=True, eq=False)
class RowMap:
    """The rules of one batch; the first rule whose part fits a module decides.

    Attributes:
        size: number of examples n.
        rules: from the most special part to the most general.
    """

    size: int
    rules: tuple[RowRule, ...]

    @classmethod
    def batch(cls, size: int, length: int | None = None) -> RowMap:
        """Every module sees [n, ...], or [n * length, ...] flattened: the map of a text model."""
        return cls(size, (batch_rule(size, length),))

    def rows_of(self, module: str, shape: Sequence[int]) -> Rows:
        """Owners of the leading rows of an input of ``shape`` [rows, ..., features] to ``module``.

        An input [1, rows, ..., features] of packed rows is understood too: the layout then has ``shape[1]`` rows.

        Raises:
            ModelError: no rule knows the module, or none of its layouts has that many rows. An owner is never
                guessed: a wrong one breaks the sensitivity bound without any other sign.
        """
        rule = next((rule for rule in self.rules if rule.fits(module)), None)
        found = None
        if rule is not None and len(shape) >= 2:
            found = rule.find(shape[0])
            if found is None and shape[0] == 1 and len(shape) >= 3:
                found = rule.find(shape[1])
        if found is None:
            known = [] if rule is None else [len(rows) for rows in rule.layouts]
            raise ModelError(
                f"Layer {module!r} has an input of shape {tuple(shape)} but the row map knows {known} rows there: use "
                "the loop engine for this model."
            )
        return found


def batch_rule(size: int, length: int | None = None, part: str = "") -> RowRule:
    """The rule of modules that see whole sequences: [n, ...] or, flattened, [n * length, ...]."""
    layouts = [Rows.repeated([1] * size)]
    if length is not None and length != 1:
        layouts.append(Rows.repeated([length] * size))
    return RowRule(part, tuple(layouts))
