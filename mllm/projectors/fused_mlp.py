"""Cobra's projector for joined channels (Zhao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mllm.projectors.base import Grid, OnePerToken, positive


class FusedMlp(OnePerToken):
    """Linear to ``factor`` times the joined width, GELU, linear, GELU, linear."""

    name = "fused-mlp"
    defaults = {"factor": 4}  # noqa: RUF012

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Three linears."""
        positive(self.name, options, "factor")
        inputs, hidden = sum(widths), sum(widths) * int(options["factor"])
        return nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs), nn.GELU(), nn.Linear(outputs, outputs)
        )
