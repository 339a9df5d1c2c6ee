"""Cross-attention from learned queries to image tokens, with a linear of its own for every projection."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class CrossAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017).

    PyTorch's own module keeps one matrix for all three projections and reads it directly, so LoRA factors cannot sit
    on it.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """[images, Q, width], [images, K, width] twice, to [images, Q, width]."""
        split = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        joined = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        out: torch.Tensor = self.out_proj(joined)
        return out


def sine_positions(rows: int, columns: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Two-dimensional sine-cosine positions [rows * columns, width] (MAE, He et al. 2022), width a multiple of 4.

    The first half of the channels speaks of the column, the second of the row; each is sines then cosines. Made anew
    at every call: a buffer would be lost when transformers builds the model on the meta device.
    """
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    halves = []
    for place in (torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)):
        angle = place.double().unsqueeze(1) * omega
        halves.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    return torch.cat(halves, dim=1).to(like.device, like.dtype)
