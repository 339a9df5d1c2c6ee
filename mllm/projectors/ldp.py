"""MobileVLM's lightweight downsample projectors, LDP (Chu et al. 2023) and LDPv2 (Chu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mllm.projectors.base import ChannelNorm, Grid, Projector, mlp, positive, to_plane, to_tokens
from umbel.errors import ModelError


class SqueezeExcite(nn.Module):
    """Channels weighted by a hard sigmoid of their means (Hu et al. 2018; MobileNetV3, Howard et al. 2019)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        mean = plane.mean((2, 3), keepdim=True)
        scale: torch.Tensor = functional.hardsigmoid(self.fc2(functional.relu(self.fc1(mean))))
        return plane * scale


class MobileUnit(nn.Module):
    """MobileNetV3's inverted residual without expansion, LayerNorm for BatchNorm; a skip where the stride is 1."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.norm1 = ChannelNorm(width)
        self.excite = SqueezeExcite(width, squeezed(width))
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = ChannelNorm(width)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        """[images, width, rows, columns] to the same, divided by the stride and rounded up."""
        excited = self.excite(functional.hardswish(self.norm1(self.depthwise(plane))))
        x: torch.Tensor = self.norm2(self.pointwise(excited))
        return x + plane if self.stride == 1 else x


def squeezed(width: int) -> int:
    """A quarter of the width, to a multiple of 8 and no more than a tenth below, as MobileNetV3 rounds."""
    rounded = max(8, int(width // 4 + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * (width // 4) else rounded


class LdpProjector(nn.Module):
    """Two linears on every token, then two mobile units on the grid, the second of stride 2."""

    def __init__(self, grid: Grid, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grid = grid
        self.mlp = mlp(inputs, outputs, 2)
        self.units = nn.ModuleList([MobileUnit(outputs, 1), MobileUnit(outputs, 2)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, rows * columns, inputs] to about a quarter of the tokens."""
        plane = to_plane(self.mlp(tokens), self.grid)
        for unit in self.units:
            plane = unit(plane)
        return to_tokens(plane)


class Ldp(Projector):
    """A quarter of the tokens (576 to 144)."""

    name = "ldp"
    defaults = {}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """Half of each side, rounded up."""
        return ((grid[0] + 1) // 2) * ((grid[1] + 1) // 2)

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """The MLP and two units."""
        return LdpProjector(grid, sum(widths), outputs)


class LdpV2Projector(nn.Module):
    """Two linears, average pooling to a fixed grid, and a depthwise convolution as position encoding."""

    def __init__(self, grid: Grid, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        self.mlp = mlp(inputs, outputs, 2)
        self.position = nn.Conv2d(outputs, outputs, 3, 1, 1, groups=outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, rows * columns, inputs] to [images, side * side, outputs]."""
        plane = functional.adaptive_avg_pool2d(to_plane(self.mlp(tokens), self.grid), self.side)
        return to_tokens(self.position(plane) + plane)


class LdpV2(Projector):
    """``side`` squared tokens, 144 by default."""

    name = "ldp-v2"
    defaults = {"side": 12}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """``side`` squared.

        Raises:
            ModelError: the grid is smaller than that.
        """
        positive(self.name, options, "side")
        side = int(options["side"])
        if min(grid) < side:
            raise ModelError(
                f"Projector {self.name!r} pools to {side} x {side}, but the image grid is {grid[0]} x {grid[1]}: "
                "choose a smaller side."
            )
        return side * side

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """MLP, pooling, position encoding."""
        self.tokens(options, grid)
        return LdpV2Projector(grid, sum(widths), outputs, int(options["side"]))

    def tiny(self) -> dict[str, Any]:
        """Two by two."""
        return {"side": 2}
