"""VL-Mamba's VSS-L2 (Qiao et al. 2024): a Mamba layer that reads the image in several orders, between two linears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mllm.projectors.base import Grid, Projector, positive
from umbel.errors import ModelError


class VssProjector(nn.Module):
    """Linear, GELU, one scan in ``directions`` orders, summed and added, LayerNorm, linear."""

    def __init__(self, grid: Grid, inputs: int, outputs: int, directions: int, state: int) -> None:
        super().__init__()
        from transformers import MambaConfig

        from mllm.language.mamba import plain_mixer

        self.grid, self.directions = grid, directions
        self.input_proj = nn.Linear(inputs, outputs)
        self.mixer = plain_mixer(MambaConfig(hidden_size=outputs, state_size=state, num_hidden_layers=1))
        self.norm = nn.LayerNorm(outputs)
        self.output_proj = nn.Linear(outputs, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, rows * columns, inputs] to [images, rows * columns, outputs]."""
        x = functional.gelu(self.input_proj(tokens))
        images, count, width = x.shape
        orders = self._orders(count, x.device)
        # The orders of one image lie next to each other, so that its rows do too.
        scanned = self.mixer(x[:, orders].reshape(images * self.directions, count, width))
        scanned = scanned.reshape(images, self.directions, count, width)
        back = torch.argsort(orders, dim=1)
        total = x
        for direction in range(self.directions):
            total = total + scanned[:, direction, back[direction]]
        projected: torch.Tensor = self.output_proj(self.norm(total))
        return projected

    def _orders(self, count: int, device: torch.device) -> torch.Tensor:
        """int64 [directions, tokens]: rows, rows backwards, columns, columns backwards."""
        rows = torch.arange(count, device=device)
        columns = rows.reshape(self.grid).t().reshape(-1)
        return torch.stack([rows, rows.flip(0), columns, columns.flip(0)][: self.directions])


class Vss(Projector):
    """As many tokens as go in; ``directions`` 2 (rows both ways) or 4 (columns too)."""

    name = "vss"
    defaults = {"directions": 4, "state": 16}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """Rows times columns.

        Raises:
            ModelError: the directions are neither 2 nor 4.
        """
        positive(self.name, options, "state")
        if options["directions"] not in (2, 4):
            raise ModelError(f"Projector {self.name!r} cannot scan in {options['directions']} directions: use 2 or 4.")
        return grid[0] * grid[1]

    def rows(self, options: Mapping[str, Any], grid: Grid) -> tuple[int, ...]:
        """One, and one a direction."""
        return 1, int(options["directions"])

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Linear, scans, linear."""
        self.tokens(options, grid)
        return VssProjector(grid, sum(widths), outputs, int(options["directions"]), int(options["state"]))
