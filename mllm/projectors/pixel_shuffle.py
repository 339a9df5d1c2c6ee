"""Space to depth, then an MLP (Idefics3, Laurençon et al. 2024; InternVL, Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.projectors.base import Grid, Projector, depth_of, mlp
from umbel.errors import ModelError


class PixelShuffleProjector(nn.Module):
    """Joins each ``factor`` x ``factor`` square of tokens along the channels, then projects."""

    def __init__(self, grid: Grid, inputs: int, outputs: int, factor: int, depth: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.proj = mlp(inputs * factor * factor, outputs, depth)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, rows * columns, inputs] to [images, rows * columns / factor**2, outputs]."""
        images, _, width = tokens.shape
        (rows, columns), f = self.grid, self.factor
        squares = tokens.reshape(images, rows // f, f, columns // f, f, width).permute(0, 1, 3, 2, 4, 5)
        joined = squares.reshape(images, (rows // f) * (columns // f), f * f * width)
        projected: torch.Tensor = self.proj(joined)
        return projected


class PixelShuffle(Projector):
    """``factor`` squared fewer tokens."""

    name = "pixel-shuffle"
    defaults = {"factor": 2, "depth": 1}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """Rows times columns over the square of the factor.

        Raises:
            ModelError: the factor does not divide the grid.
        """
        factor = int(options["factor"])
        if factor < 1 or grid[0] % factor or grid[1] % factor:
            raise ModelError(
                f"The pixel-shuffle factor {factor} does not divide the image grid {grid[0]} x {grid[1]}: "
                "choose a divisor."
            )
        return (grid[0] // factor) * (grid[1] // factor)

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Space to depth and ``depth`` linears."""
        self.tokens(options, grid)
        return PixelShuffleProjector(grid, sum(widths), outputs, int(options["factor"]), depth_of(options))
