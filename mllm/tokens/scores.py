"""Which image tokens a layer attends to: its own queries and keys, computed as its attention computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def can_be_asked(attention: Any) -> bool:
    """Whether queries and keys can be had: from ``q_proj`` and ``k_proj``, or from ``qkv_proj``, which holds both."""
    return hasattr(attention, "qkv_proj") or (hasattr(attention, "q_proj") and hasattr(attention, "k_proj"))


def image_shares(layer: Any, hidden: Tensor, images: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """How the first token after an example's last image shares its attention out over the image tokens.

    Each head's weights are divided by their sum over the images, then averaged over heads: text does not count.

    Args:
        layer: of the decoder, whose ``self_attn`` :func:`can_be_asked`.
        hidden: what goes into the layer, [n, T, width].
        images: where images are, bool [n, T].
        kwargs: what the layer is called with beside it.

    Returns:
        float32 [n, T] without gradient; of no meaning in rows without images.
    """
    with torch.no_grad():
        attention = layer.self_attn
        query, key = _heads(attention, layer.input_layernorm(hidden.detach()))
        if kwargs.get("position_embeddings") is not None:
            cos, sin = (part.unsqueeze(1).to(query.dtype) for part in kwargs["position_embeddings"])
            query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        last = torch.where(images, torch.arange(images.shape[1], device=images.device), -1).amax(dim=1)
        asking = (last + 1).clamp(max=images.shape[1] - 1)
        query = query.gather(2, asking.view(-1, 1, 1, 1).expand(-1, query.shape[1], 1, query.shape[-1]))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scaling = getattr(attention, "scaling", None) or query.shape[-1] ** -0.5
        weights = (query @ key.transpose(2, 3)).float().squeeze(2) * float(scaling)
        seen = images & _visible(kwargs.get("attention_mask"), asking, images)
        lowest = torch.finfo(weights.dtype).min  # not -inf: a row without images would become NaN
        return weights.masked_fill(~seen.unsqueeze(1), lowest).softmax(dim=-1).mean(dim=1)


def _heads(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [n, heads, T, head width] before rotation, normalised where the attention does that."""
    size = int(attention.head_dim)
    if hasattr(attention, "q_proj"):
        parts = attention.q_proj(x), attention.k_proj(x)
    else:
        config = attention.config
        widths = int(config.num_attention_heads) * size, int(config.num_key_value_heads) * size
        parts = attention.qkv_proj(x)[..., : sum(widths)].split(widths, dim=-1)
    query, key = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in parts)
    for first, second in (("q_layernorm", "k_layernorm"), ("q_norm", "k_norm")):
        if hasattr(attention, first):
            query, key = getattr(attention, first)(query), getattr(attention, second)(key)
    return query, key


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[n, heads, T, d] with its first dimensions rotated, as many as ``cos`` has; Phi and StableLM leave the rest."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


def _visible(mask: Any, asking: Tensor, images: Tensor) -> Tensor:
    """bool [n, T]: what the asking token sees; a sliding window may leave images out."""
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] != images.shape[1]:
        return torch.ones_like(images)
    rows = mask[:, 0].expand(len(images), -1, -1).gather(1, asking.view(-1, 1, 1).expand(-1, 1, mask.shape[-1]))
    row = rows.squeeze(1)
    return row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
