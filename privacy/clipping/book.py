"""The book of one layer: what it needs to remember of a backward pass, its squared norms and its clipped sum."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from privacy.clipping.claims import Claim, Kind
from privacy.clipping.per_example import flatten_rows, outer_sums, plain_sums, slices, squared_norm
from umbel.rows import RowMap, Rows


class Book:
    """Per-example gradients of one layer during one microbatch.

    A small weight (every LoRA factor) is booked as one gradient an example, [n, out, in]; where that would be larger
    than the rows themselves (an lm_head trained in full) the rows are kept and the norm comes from them.
    """

    def __init__(self, claim: Claim, rows: RowMap) -> None:
        self._claim = claim
        self._map = rows
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor, Rows, int]] = []

    def record(self, x: Tensor, g: Tensor) -> None:
        """Called in the backward pass, once a use of the layer: x [rows, ..., in], g [rows, ..., out]."""
        rows = self._map.rows_of(self._claim.path, g.shape)
        flat_g, inner = flatten_rows(g.detach(), rows)
        if self._claim.bias is not None:
            bias = plain_sums(flat_g, rows, inner)
            self._bias = bias if self._bias is None else self._bias.add_(bias)
        if self._claim.weight is None:
            return
        flat_x, _ = flatten_rows(x.detach(), rows)
        if self._claim.kind is not Kind.LINEAR:
            self._grow(plain_sums(flat_g * flat_x, rows, inner))
        elif self._kept or self._keeps_rows(flat_g, flat_x, rows.size):
            self._kept.append((flat_g, flat_x, rows, inner))
        else:
            self._grow(outer_sums(flat_g, flat_x, rows, inner))

    def _keeps_rows(self, g: Tensor, x: Tensor, size: int) -> bool:
        out, width = g.shape[1], x.shape[1]
        return self._weight is None and g.shape[0] * (out + width) < size * out * width

    def _grow(self, value: Tensor) -> None:
        self._weight = value if self._weight is None else self._weight.add_(value)

    @property
    def _any(self) -> bool:
        return self._weight is not None or self._bias is not None or bool(self._kept)

    def squared_norms(self) -> Tensor | None:
        """float64 [n], or None when the layer saw no gradient."""
        terms = [
            torch.linalg.vector_norm(held.flatten(1), dim=1).double().square()
            for held in (self._weight, self._bias)
            if held is not None
        ]
        if self._kept:
            terms.append(self._kept_norms())
        return torch.stack(terms).sum(dim=0) if terms else None

    def _kept_norms(self) -> Tensor:
        g0 = self._kept[0][0]
        norms = torch.zeros(self._map.size, dtype=torch.float64, device=g0.device)
        for example, g, x in self._kept_examples():
            norms[example] = squared_norm(g, x)
        return norms

    def _kept_examples(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """All rows of each example over all uses: the norm of a sum needs its cross terms."""
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for g, x, rows, inner in self._kept:
            for example, part in slices(rows, inner):
                parts.setdefault(example, []).append((g[part], x[part]))
        for example, pieces in parts.items():
            yield example, torch.cat([g for g, _ in pieces]), torch.cat([x for _, x in pieces])

    def clipped_sum(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and sums over examples of factor times gradient; factors float32 [n], 0 where not finite."""
        device = next((t.device for t in (self._weight, self._bias) if t is not None), None)
        factors = factors.to(device if device is not None else self._kept[0][0].device) if self._any else factors
        keep = factors > 0
        whole = bool(keep.all())
        for name, held in ((self._claim.weight, self._weight), (self._claim.bias, self._bias)):
            if name is not None and held is not None:
                if not whole:  # 0 times NaN is NaN: leave those rows out instead
                    held[~keep] = 0
                yield name, (factors @ held.flatten(1)).view(held.shape[1:])
        if self._kept and self._claim.weight is not None:
            yield self._claim.weight, self._kept_sum(factors, keep, whole)

    def _kept_sum(self, factors: Tensor, keep: Tensor, whole: bool) -> Tensor:
        total: Tensor | None = None
        for g, x, rows, inner in self._kept:
            owners = torch.repeat_interleave(torch.arange(rows.size), torch.tensor(rows.counts) * inner).to(g.device)
            if not whole:
                mask = keep[owners]
                g, x, owners = g[mask], x[mask], owners[mask]
            part = (g * factors[owners].unsqueeze(1)).t() @ x
            total = part if total is None else total.add_(part)
        assert total is not None
        return total
