"""MiniCPM-V's perceiver resampler (after Qwen-VL, Bai et al. 2023): one cross-attention with 2-D positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.projectors.attention import CrossAttention, sine_positions
from mllm.projectors.base import Grid, Projector, divisible, positive


class ResamplerProjector(nn.Module):
    """A grid of learned queries that attends to all image tokens."""

    def __init__(self, grid: Grid, inputs: int, outputs: int, side: int, heads: int) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        self.query = nn.Parameter(torch.empty(side * side, outputs))
        nn.init.normal_(self.query, std=0.02)
        self.kv_proj = nn.Linear(inputs, outputs, bias=False)
        self.attn = CrossAttention(outputs, heads)
        self.ln_q = nn.LayerNorm(outputs, eps=1e-6)
        self.ln_kv = nn.LayerNorm(outputs, eps=1e-6)
        self.ln_post = nn.LayerNorm(outputs, eps=1e-6)
        self.proj = nn.Parameter(torch.empty(outputs, outputs))
        nn.init.normal_(self.proj, std=outputs**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, rows * columns, inputs] to [images, side * side, outputs]."""
        values = self.ln_kv(self.kv_proj(tokens))
        width = values.shape[-1]
        queries = self.ln_q(self.query) + sine_positions(self.side, self.side, width, self.query)
        keys = values + sine_positions(*self.grid, width, values)
        found = self.attn(queries.expand(tokens.shape[0], -1, -1), keys, values)
        resampled: torch.Tensor = self.ln_post(found) @ self.proj
        return resampled


class Resampler(Projector):
    """``side`` squared tokens (64 by default); ``head`` is the width of an attention head."""

    name = "resampler"
    defaults = {"side": 8, "head": 128}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """``side`` squared."""
        positive(self.name, options, "side", "head")
        return int(options["side"]) ** 2

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Queries, one attention, a square projection."""
        head = int(options["head"])
        divisible(self.name, "head", outputs, head)
        divisible(self.name, "sine positions", outputs, 4)
        return ResamplerProjector(grid, sum(widths), outputs, int(options["side"]), outputs // head)

    def tiny(self) -> dict[str, Any]:
        """Two by two, heads of 16."""
        return {"side": 2, "head": 16}
