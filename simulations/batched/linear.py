"""The adapted linear layer with one pair of factors a lane (Hu et al. 2021, batched over clients).

    y = W_0 x  +  s B_l A_l drop(x)      for the rows of lane l

The frozen part runs once over all rows, as the layer that it is (quantized or not); a plain linear layer is computed
here, so that the factors' part is added in place, forwards and backwards. Of the factors only the products are batched;
their gradients are written straight into the group's flat gradient, or, for private training, into one row an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from simulations.batched.chunk import Chunk
from simulations.batched.state import LaneSite
from umbel.errors import ModelError


class LanedLora(torch.autograd.Function):
    """base + s B_l (A_l (mask * x)), rows [n, in] to [n, out]; gradients of A and B go to the chunk.

    Where ``plain`` is given, base is its W_0 x + bias, computed here, and None comes in its place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor | None,
        x: Tensor,
        leaf: Tensor,
        mask: Tensor | None,
        site: LaneSite,
        owners: Any,
        chunk: Chunk,
        plain: nn.Linear | None,
    ) -> Tensor:
        """``leaf`` makes the result require a gradient even where neither ``base`` nor ``x`` does."""
        a, b, pieces = chunk.spread(site, owners[0], x.shape[0])
        kept = x if mask is None else x * mask
        hidden = kept.new_empty(kept.shape[0], a.shape[1])
        whole = len(pieces) == 1 and pieces[0][3] == kept.shape[0]
        if base is None:
            assert plain is not None
            y = functional.linear(x, plain.weight, plain.bias)
        else:
            y = base if whole else base.clone()
        for first, last, start, stop in pieces:
            rows, n = slice(start, stop), last - first
            part = hidden[rows].view(n, -1, a.shape[1])
            torch.bmm(kept[rows].view(n, -1, kept.shape[1]), a[first:last].mT, out=part)
            into = y[rows].view(n, -1, y.shape[1])
            if whole and base is not None:  # its own buffer may be needed elsewhere
                y = torch.baddbmm(into, part, b[first:last].mT, alpha=site.scaling).view_as(base)
            else:
                into.baddbmm_(part, b[first:last].mT, alpha=site.scaling)
        ctx.save_for_backward(kept, hidden, mask)
        ctx.site, ctx.owners, ctx.chunk, ctx.plain = site, owners, chunk, plain if base is None else None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a base that came from outside is g itself."""
        kept, hidden, mask = ctx.saved_tensors
        site, chunk = ctx.site, ctx.chunk
        lanes, examples = ctx.owners
        a, b, pieces = chunk.spread(site, lanes, kept.shape[0])
        b = b.mT.contiguous().mT  # three times faster than with r as the last, short dimension
        g = g.contiguous()
        back = torch.empty_like(hidden)
        weight: Tensor | None = None if ctx.plain is None else ctx.plain.weight
        gx = torch.empty_like(kept) if ctx.needs_input_grad[1] else None
        added = False
        if gx is not None and weight is not None and mask is None:
            torch.mm(g, weight, out=gx)
            added = True
        for first, last, start, stop in pieces:
            rows, n = slice(start, stop), last - first
            part = back[rows].view(n, -1, a.shape[1])
            torch.bmm(g[rows].view(n, -1, g.shape[1]), b[first:last], out=part)
            part.mul_(site.scaling)
            if gx is not None:
                into = gx[rows].view(n, -1, gx.shape[1])
                if added:
                    into.baddbmm_(part, a[first:last])
                else:
                    torch.bmm(part, a[first:last], out=into)
        chunk.record(site, lanes, examples, g, back, hidden, kept)
        if gx is not None and mask is not None:
            gx.mul_(mask)
            if weight is not None:
                gx.addmm_(g, weight)
        return (g if ctx.needs_input_grad[0] else None, gx, *[None] * 6)


class Slot:
    """Where the replaced layers find the chunk of the pass that is running."""

    chunk: Chunk | None = None


def laned_forward(site: LaneSite, slot: Slot, leaf: Tensor) -> Callable[..., Tensor]:
    """A ``forward`` for PEFT's layer that reads the factors of every row's own lane."""
    base_layer = site.module.base_layer

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chunk = slot.chunk
        assert chunk is not None
        plain = base_layer if x.dtype == leaf.dtype and not args and not kwargs and _is_plain(base_layer, x) else None
        result: Tensor | None = None if plain is not None else base_layer(x, *args, **kwargs)
        lanes, examples, text = chunk.rows.of(site.path, x.shape)
        wide = x if x.dtype == leaf.dtype else x.to(leaf.dtype)
        mask = chunk.mask(site, lanes, x.shape, text)
        flat: Tensor = LanedLora.apply(  # type: ignore[no-untyped-call]
            None if result is None else result.reshape(-1, result.shape[-1]).to(leaf.dtype),
            wide.reshape(-1, wide.shape[-1]),
            leaf,
            mask,
            site,
            (lanes, examples),
            chunk,
            plain,
        )
        return flat.view(*x.shape[:-1], flat.shape[-1]).to(x.dtype if result is None else result.dtype)

    return forward


def _is_plain(layer: Any, x: Tensor) -> bool:
    """Whether a layer does nothing but W_0 x + bias, with values that are frozen, of x's dtype and not quantized."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == x.dtype
        and not any(parameter.requires_grad for parameter in layer.parameters())
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
    )


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
