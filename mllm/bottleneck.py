"""Bottleneck adapters beside linear layers (parallel adapters, He et al. 2022, section 4.2; GELU, which never dies)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """scale * up(gelu(down(x))): [.., inputs] to [.., outputs], float32. ``up`` starts at zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the linear layer's output."""
        out: Tensor = self.up(F.gelu(self.down(x.to(self.down.weight.dtype)))) * self.scale
        return out


def put_beside(linear: nn.Module, made: Bottleneck) -> Any:
    """Registers the adapter as ``linear.adapter`` and adds its output; returns the hook's handle."""
    linear.add_module("adapter", made)

    def add(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        extra: torch.Tensor = module.adapter(inputs[0])
        return output + extra.to(output.dtype)

    return linear.register_forward_hook(add)
