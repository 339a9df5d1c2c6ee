"""The adapted linear layer with one pair of factors a lane (Hu et al. 2021, batched over clients).

    y = W_0 x  +  s B_l A_l drop(x)      for the rows of lane l

The frozen part runs once over all rows, as the layer that it is (quantized or not). Of the factors only the products
are batched; their gradients are written straight into the group's flat gradient, or, for private training, into one
row an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simulations.batched.chunk import Chunk
from simulations.batched.state import LaneSite
from umbel.errors import ModelError


class LanedLora(torch.autograd.Function):
    """base + s B_l (A_l (mask * x)), rows [n, in] to [n, out]; gradients of A and B go to the chunk."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, leaf: Tensor, mask: Tensor | None, site: LaneSite, owners: Any, chunk: Chunk
    ) -> Tensor:
        """``leaf`` makes the result require a gradient even where neither ``base`` nor ``x`` does."""
        a, b, pieces = chunk.spread(site, owners[0], x.shape[0])
        kept = x if mask is None else x * mask
        hidden = kept.new_empty(kept.shape[0], a.shape[1])
        whole = len(pieces) == 1 and pieces[0][3] == kept.shape[0]
        y = base if whole else base.clone()
        for first, last, start, stop in pieces:
            rows, n = slice(start, stop), last - first
            part = hidden[rows].view(n, -1, a.shape[1])
            torch.bmm(kept[rows].view(n, -1, kept.shape[1]), a[first:last].mT, out=part)
            into = y[rows].view(n, -1, y.shape[1])
            if whole:
                y = torch.baddbmm(into, part, b[first:last].mT, alpha=site.scaling).view_as(base)
            else:
                into.baddbmm_(part, b[first:last].mT, alpha=site.scaling)
        ctx.save_for_backward(kept, hidden, mask)
        ctx.site, ctx.owners, ctx.chunk = site, owners, chunk
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the base is g itself."""
        kept, hidden, mask = ctx.saved_tensors
        site, chunk = ctx.site, ctx.chunk
        lanes, examples = ctx.owners
        a, b, pieces = chunk.spread(site, lanes, kept.shape[0])
        b = b.mT.contiguous().mT  # three times faster than with r as the last, short dimension
        g = g.contiguous()
        back = torch.empty_like(hidden)
        gx = torch.empty_like(kept) if ctx.needs_input_grad[1] else None
        for first, last, start, stop in pieces:
            rows, n = slice(start, stop), last - first
            part = back[rows].view(n, -1, a.shape[1])
            torch.bmm(g[rows].view(n, -1, g.shape[1]), b[first:last], out=part)
            part.mul_(site.scaling)
            if gx is not None:
                torch.bmm(part, a[first:last], out=gx[rows].view(n, -1, gx.shape[1]))
        chunk.record(site, lanes, examples, g, back, hidden, kept)
        if gx is not None and mask is not None:
            gx.mul_(mask)
        return (g if ctx.needs_input_grad[0] else None, gx, None, None, None, None, None)


class Slot:
    """Where the replaced layers find the chunk of the pass that is running."""

    chunk: Chunk | None = None


def laned_forward(site: LaneSite, slot: Slot, leaf: Tensor) -> Callable[..., Tensor]:
    """A ``forward`` for PEFT's layer that reads the factors of every row's own lane."""
    base_layer = site.module.base_layer

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chunk = slot.chunk
        assert chunk is not None
        result: Tensor = base_layer(x, *args, **kwargs)
        lanes, examples, text = chunk.rows.of(site.path, x.shape)
        wide = x if x.dtype == leaf.dtype else x.to(leaf.dtype)
        mask = chunk.mask(site, lanes, x.shape, text)
        flat: Tensor = LanedLora.apply(  # type: ignore[no-untyped-call]
            result.reshape(-1, result.shape[-1]).to(leaf.dtype),
            wide.reshape(-1, wide.shape[-1]),
            leaf,
            mask,
            site,
            (lanes, examples),
            chunk,
        )
        return flat.view(result.shape).to(result.dtype)

    return forward


@contextmanager
def laned(sites: Sequence[LaneSite], leaf: Tensor) -> Iterator[Slot]:
    """Puts the laned forwards on the layers, and takes them off whatever happens.

    Args:
        sites: the adapted layers.
        leaf: an empty tensor of the factors' dtype that requires a gradient.

    Raises:
        ModelError: a layer already has a forward of its own.
    """
    slot, taken = Slot(), []
    try:
        for site in sites:
            if "forward" in vars(site.module):
                raise ModelError(f"Layer {site.path!r} has a forward of its own: remove the other tool that wraps it.")
            site.module.forward = laned_forward(site, slot, leaf)
            taken.append(site.module)
        yield slot
    finally:
        for module in taken:
            del module.forward
