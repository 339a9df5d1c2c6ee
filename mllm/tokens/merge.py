"""Fewer image tokens before the language model sees them: one image's tokens in, a fixed number out.

All take ``tokens`` [images, n, d] and ``keep`` m with 1 <= m <= n and return [images, m, d]; with m = n they return
their input. Which tokens are merged is chosen without gradient; the values that come out carry one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Reducer = Callable[[Tensor, int], Tensor]


def pool(tokens: Tensor, keep: int) -> Tensor:
    """Adaptive average pooling on the token grid, or along the sequence where n is no square.

    The pooled grid is the most nearly square one of exactly m cells.
    """
    images, n, width = tokens.shape
    if keep == n:
        return tokens
    side = math.isqrt(n)
    if side * side != n:
        return F.adaptive_avg_pool1d(tokens.transpose(1, 2), keep).transpose(1, 2)
    rows = max(r for r in range(1, math.isqrt(keep) + 1) if keep % r == 0)
    if keep // rows > side:  # m is prime, say: no grid of m cells fits into the grid
        return F.adaptive_avg_pool1d(tokens.transpose(1, 2), keep).transpose(1, 2)
    grid = tokens.transpose(1, 2).reshape(images, width, side, side)
    return F.adaptive_avg_pool2d(grid, (rows, keep // rows)).flatten(2).transpose(1, 2)


def tome(tokens: Tensor, keep: int) -> Tensor:
    """Bipartite soft matching (ToMe, Bolya et al. 2023, section 3.2), repeated until m tokens are left.

    Every second token is matched to its most similar neighbour among the others (cosine), the most similar pairs are
    averaged by how many tokens each already stands for. The paper merges inside the encoder's layers and matches by
    attention keys; here the encoder's output is merged, which saves the language model's work alone.
    """
    sizes = tokens.new_ones(tokens.shape[:2])
    while tokens.shape[1] > keep:
        tokens, sizes = _merge_pairs(tokens, sizes, min(tokens.shape[1] - keep, tokens.shape[1] // 2))
    return tokens


def _merge_pairs(tokens: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merges ``count`` tokens at even places into tokens at odd ones; the order of those left is kept."""
    images, n, width = tokens.shape
    even, odd = tokens[:, ::2], tokens[:, 1::2]
    with torch.no_grad():
        unit = F.normalize(tokens.detach().float(), dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True, stable=True)
        merged, left = ranked[:, :count], ranked[:, count:].sort(dim=-1).values
        into = partner.gather(1, merged)
    weight = sizes[:, ::2].gather(1, merged)
    total = sizes[:, 1::2].scatter_add(1, into, weight)
    moved = even.gather(1, merged.unsqueeze(-1).expand(-1, -1, width)) * weight.unsqueeze(-1)
    summed = (odd * sizes[:, 1::2].unsqueeze(-1)).scatter_add(1, into.unsqueeze(-1).expand(-1, -1, width), moved)
    stay = even.gather(1, left.unsqueeze(-1).expand(-1, -1, width))
    places = torch.cat([2 * left, torch.arange(1, n, 2, device=tokens.device).expand(images, -1)], dim=1)
    order = places.argsort(dim=1)
    joined = torch.cat([stay, summed / total.unsqueeze(-1)], dim=1)
    weights = torch.cat([sizes[:, ::2].gather(1, left), total], dim=1)
    return joined.gather(1, order.unsqueeze(-1).expand(-1, -1, width)), weights.gather(1, order)


def prumerge(tokens: Tensor, keep: int) -> Tensor:
    """The m most attended tokens, each joined with the dropped ones that resemble it (LLaVA-PruMerge, Shang et al.
    2024, sections 3.2 and 3.3).

    The paper reads importance from a CLS token's attention. Convolutional towers and SigLIP have none, so the mean
    token stands for it, everywhere alike. The paper's number of tokens adapts to the image; here it is fixed, so that
    text and images stay aligned. A dropped token goes to the kept one that it resembles most, with its importance as
    weight.
    """
    _, n, width = tokens.shape
    if keep == n:
        return tokens
    with torch.no_grad():
        plain = tokens.detach().float()
        score = (plain @ plain.mean(dim=1, keepdim=True).transpose(1, 2)).squeeze(-1) / math.sqrt(width)
        attention = score.softmax(dim=-1)
        ranked = attention.argsort(dim=-1, descending=True, stable=True)
        kept, gone = ranked[:, :keep].sort(dim=-1).values, ranked[:, keep:]
        unit = F.normalize(plain, dim=-1)
        near = unit.gather(1, gone.unsqueeze(-1).expand(-1, -1, width))
        into = (near @ unit.gather(1, kept.unsqueeze(-1).expand(-1, -1, width)).transpose(1, 2)).argmax(dim=-1)
        weight = attention.clamp(min=1e-12).to(tokens.dtype)
    base, extra = weight.gather(1, kept), weight.gather(1, gone)
    total = base.scatter_add(1, into, extra)
    summed = tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, width)) * base.unsqueeze(-1)
    moved = tokens.gather(1, gone.unsqueeze(-1).expand(-1, -1, width)) * extra.unsqueeze(-1)
    summed = summed.scatter_add(1, into.unsqueeze(-1).expand(-1, -1, width), moved)
    return summed / total.unsqueeze(-1)


REDUCERS: Mapping[str, Reducer] = {"pool": pool, "tome": tome, "prumerge": prumerge}
