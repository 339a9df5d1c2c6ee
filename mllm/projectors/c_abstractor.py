"""Honeybee's C-Abstractor (Cha et al. 2023), which MM1 uses: convolutions around a pooling of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mllm.projectors.base import ChannelNorm, Grid, Projector, mlp, positive, to_plane, to_tokens
from umbel.errors import ModelError


class ConvNorm(nn.Module):
    """Convolution without bias, LayerNorm over channels, SiLU where asked for."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1, active: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, 1, size // 2, groups=groups, bias=False)
        self.norm = ChannelNorm(outputs, eps=1e-6)
        self.active = active

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        """The same grid."""
        x: torch.Tensor = self.norm(self.conv(plane))
        return functional.silu(x) if self.active else x


class RegBlock(nn.Module):
    """RegNet's Y block (Radosavovic et al. 2020) of bottleneck ratio 1: 1x1, 3x3, squeeze-excite, 1x1, shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        squeezed = max(1, round(inputs * 0.25))
        self.conv1 = ConvNorm(inputs, outputs, 1)
        self.conv2 = ConvNorm(outputs, outputs, 3)
        self.squeeze = nn.Conv2d(outputs, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, outputs, 1)
        self.conv3 = ConvNorm(outputs, outputs, 1, active=False)
        self.shortcut = nn.Identity() if inputs == outputs else ConvNorm(inputs, outputs, 1, active=False)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        """[images, inputs, rows, columns] to [images, outputs, rows, columns]."""
        x = self.conv2(self.conv1(plane))
        scale = self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.conv3(x * scale.sigmoid())
        out: torch.Tensor = functional.silu(x + self.shortcut(plane))
        return out


class CAbstractorProjector(nn.Module):
    """Learned positions, blocks, pooling to a fixed grid, blocks, MLP with SiLU."""

    def __init__(self, grid: Grid, inputs: int, outputs: int, side: int, hidden: int, blocks: int, depth: int) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        self.position = nn.Parameter(torch.zeros(1, grid[0] * grid[1], inputs))
        nn.init.normal_(self.position, std=0.02)
        self.before = nn.ModuleList(RegBlock(inputs if n == 0 else hidden, hidden) for n in range(blocks))
        self.after = nn.ModuleList(RegBlock(hidden, hidden) for _ in range(blocks))
        self.readout = mlp(hidden, outputs, depth, activation=nn.SiLU)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, rows * columns, inputs] to [images, side * side, outputs]."""
        plane = to_plane(tokens + self.position, self.grid)
        for block in self.before:
            plane = block(plane)
        plane = functional.adaptive_avg_pool2d(plane, self.side)
        for block in self.after:
            plane = block(plane)
        projected: torch.Tensor = self.readout(to_tokens(plane))
        return projected


class CAbstractor(Projector):
    """``side`` squared tokens (144 by default); ``hidden`` is the blocks' width, ``blocks`` how many on each side."""

    name = "c-abstractor"
    defaults = {"side": 12, "hidden": 1024, "blocks": 3, "depth": 2}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """``side`` squared.

        Raises:
            ModelError: the grid is smaller than that.
        """
        positive(self.name, options, "side", "hidden", "blocks", "depth")
        side = int(options["side"])
        if min(grid) < side:
            raise ModelError(
                f"Projector {self.name!r} pools to {side} x {side}, but the image grid is {grid[0]} x {grid[1]}: "
                "choose a smaller side."
            )
        return side * side

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Blocks, pooling, blocks, MLP."""
        self.tokens(options, grid)
        side, hidden, blocks, depth = (int(options[key]) for key in ("side", "hidden", "blocks", "depth"))
        return CAbstractorProjector(grid, sum(widths), outputs, side, hidden, blocks, depth)

    def tiny(self) -> dict[str, Any]:
        """Two by two, one block on each side."""
        return {"side": 2, "hidden": 64, "blocks": 1}
