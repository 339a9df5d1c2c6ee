"""One joint forward and backward pass: the next microbatch of a run of lanes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simulations.batched.owners import LaneRows, Owners, Piece
from simulations.batched.state import LaneSite, LaneState

_FEW = 4


class Chunk:
    """What the laned layers need to know while one joint batch runs.

    Args:
        state: of the group.
        lanes: which lanes take part, neighbours in the group.
        rows: owners of rows, over exactly these lanes.
        size: examples in the joint batch.
        lengths: tokens of the longest row of each lane, its own padded width.
        generators: one a lane, for dropout; None switches dropout off.
        books: [size, d] of zeros for per-example gradients; None sums them into the group's gradient.
    """

    def __init__(
        self,
        state: LaneState,
        lanes: slice,
        rows: LaneRows,
        size: int,
        lengths: Sequence[int],
        generators: Sequence[torch.Generator] | None,
        books: Tensor | None = None,
    ) -> None:
        self.rows = rows
        self._state = state
        self._lanes = lanes
        self._size = size
        self._lengths = lengths
        self._generators = generators
        self._books = books

    def spread(self, site: LaneSite, lanes: Owners, rows: int) -> tuple[Tensor, Tensor, Sequence[Piece]]:
        """A [n, r, in], B [n, out, r] and which of ``rows`` each of the n belongs to.

        Where lanes are ragged and a row of the layout is long (text, image tokens), each row gets its own copy of its
        lane's factors: one product over equal blocks then does for many small ones.
        """
        a, b = self._state.factor(site.pair.a, self._lanes), self._state.factor(site.pair.b, self._lanes)
        count = sum(lanes.counts)
        inner = rows // max(count, 1)
        if len(lanes.pieces) > _FEW and inner >= 2 * a.shape[1]:
            index = lanes.index.to(a.device)
            return a[index], b[index], ((0, count, 0, rows),)
        return a, b, [(first, last, start * inner, stop * inner) for first, last, start, stop in lanes.pieces]

    def mask(self, site: LaneSite, lanes: Owners, shape: Sequence[int], text: bool) -> Tensor | None:
        """Dropout's factors [rows, in], drawn as the sequential trainer would draw them for each lane alone.

        A lane alone has its own padded width, so it draws fewer values; the rest stay 0, behind its last token.
        """
        if site.dropout == 0 or self._generators is None:
            return None
        width = shape[-1]
        keep = 1 - site.dropout
        out = torch.zeros(*shape, dtype=self._state.weights.dtype, device=self._state.weights.device)
        grid = out.view(self._size, -1, width) if text else out.view(sum(lanes.counts), -1, width)
        per_row = sum(lanes.counts) // self._size if text else 1
        row = 0
        for lane, count in enumerate(lanes.counts):
            if count:
                part = grid[row : row + count // per_row]
                if text:
                    part = part[:, : self._lengths[lane]]
                generator = self._generators[lane]
                drawn = torch.empty(part.shape, dtype=out.dtype, device=generator.device)
                part.copy_(drawn.bernoulli_(keep, generator=generator).div_(keep))
                row += count // per_row
        return out.view(-1, width)

    def record(
        self, site: LaneSite, lanes: Owners, examples: Owners, g: Tensor, back: Tensor, hidden: Tensor, kept: Tensor
    ) -> None:
        """Adds one layer's gradients: of A from (back, kept), of B from (g, hidden); rows as in the forward pass."""
        owners = lanes if self._books is None else examples
        scale = kept.shape[0] // max(sum(lanes.counts), 1)
        for tensor, left, right, alpha in (
            (site.pair.a, back, kept, 1.0),
            (site.pair.b, g, hidden, site.scaling),
        ):
            target = self._target(tensor.name)
            if target is None:
                continue
            into = target.view(target.shape[0], *tensor.shape)
            present = self._state.present[self._lanes, self._state.index[tensor.name]]
            for first, last, start, stop in owners.pieces:
                rows, n = slice(start * scale, stop * scale), last - first
                # Not baddbmm_: into a view with gaps it falls back to one product after the other.
                made = torch.bmm(left[rows].view(n, -1, left.shape[1]).mT, right[rows].view(n, -1, right.shape[1]))
                if self._books is None and not present[first:last].all():
                    if not present[first:last].any():
                        torch.mul(made, alpha, out=into[first:last])
                        continue
                    into[first:last][torch.from_numpy(~present[first:last])] = 0
                into[first:last].add_(made, alpha=alpha)
            for first, last, _, _ in lanes.pieces:
                present[first:last] = True

    def _target(self, name: str) -> Tensor | None:
        offset = self._state.offsets.get(name)
        if offset is None:
            return None
        flat = self._state.gradients[self._lanes] if self._books is None else self._books
        return flat[:, offset : offset + self._state.sizes[self._state.index[name]]]
