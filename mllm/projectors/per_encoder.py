"""Projectors of towers whose channels are joined: one linear an encoder (Vary), or one linear and a norm (SPHINX)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.projectors.base import Grid, OnePerToken, divisible


class LinearPerEncoder(nn.Module):
    """Each encoder's channels by a linear layer of their own, side by side."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.linears = nn.ModuleList(nn.Linear(width, outputs // len(widths)) for width in widths)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, tokens, sum of widths] to [images, tokens, outputs]."""
        parts = torch.split(tokens, self.widths, dim=-1)
        return torch.cat([linear(part) for linear, part in zip(self.linears, parts, strict=True)], dim=-1)


class PerEncoder(OnePerToken):
    """Half the width each for two encoders (Vary, Wei et al. 2023)."""

    name = "linear-per-encoder"
    defaults = {}  # noqa: RUF012

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """One linear an encoder."""
        divisible(self.name, "encoders", outputs, len(widths))
        return LinearPerEncoder(widths, outputs)


class JoinedLinear(OnePerToken):
    """A linear on joined channels and a LayerNorm (SPHINX, Lin et al. 2023)."""

    name = "linear-norm"
    defaults = {}  # noqa: RUF012

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Linear, LayerNorm."""
        return nn.Sequential(nn.Linear(sum(widths), outputs), nn.LayerNorm(outputs))
