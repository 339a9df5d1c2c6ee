"""The MLP projector of LLaVA-1.5 (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mllm.projectors.base import Grid, Projector, depth_of, mlp


class Mlp(Projector):
    """Every token by itself; as many come out as go in."""

    name = "mlp"
    defaults = {"depth": 2}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """Rows times columns."""
        return grid[0] * grid[1]

    def build(self, options: Mapping[str, Any], grid: Grid, inputs: int, outputs: int) -> nn.Module:
        """``depth`` linears with GELU between them."""
        return mlp(inputs, outputs, depth_of(options))
