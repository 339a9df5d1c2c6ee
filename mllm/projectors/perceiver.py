"""The perceiver resampler of Flamingo (Alayrac et al. 2022) and Idefics2 (Laurençon et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.projectors.attention import CrossAttention
from mllm.projectors.base import Grid, Projector, divisible, positive


class PerceiverLayer(nn.Module):
    """Latents attend to the image and to themselves, then a feed-forward; both with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_latents = nn.LayerNorm(width)
        self.norm_image = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, bias=False)
        self.norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 4 * width, bias=False)
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, latents: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """[images, latents, width] and [images, tokens, width] to [images, latents, width]."""
        normal = self.norm_latents(latents)
        context = torch.cat([self.norm_image(image), normal], dim=1)
        latents = latents + self.attention(normal, context, context)
        out: torch.Tensor = latents + self.down_proj(nn.functional.gelu(self.up_proj(self.norm(latents))))
        return out


class PerceiverProjector(nn.Module):
    """Learned latents through several layers."""

    def __init__(self, inputs: int, outputs: int, latents: int, depth: int, heads: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(inputs, outputs)
        self.latents = nn.Parameter(torch.empty(latents, outputs))
        nn.init.normal_(self.latents, std=0.02)
        self.layers = nn.ModuleList(PerceiverLayer(outputs, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, tokens, inputs] to [images, latents, outputs]."""
        image = self.input_proj(tokens)
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, image)
        normal: torch.Tensor = self.norm(latents)
        return normal


class Perceiver(Projector):
    """``latents`` tokens after ``depth`` layers; ``head`` is the width of an attention head."""

    name = "perceiver"
    defaults = {"latents": 64, "depth": 3, "head": 64}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """As many as there are latents."""
        positive(self.name, options, "latents", "depth", "head")
        return int(options["latents"])

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Latents and layers."""
        self.tokens(options, grid)
        head = int(options["head"])
        divisible(self.name, "head", outputs, head)
        return PerceiverProjector(sum(widths), outputs, int(options["latents"]), int(options["depth"]), outputs // head)

    def tiny(self) -> dict[str, Any]:
        """Four latents, one layer, heads of 16."""
        return {"latents": 4, "depth": 1, "head": 16}
