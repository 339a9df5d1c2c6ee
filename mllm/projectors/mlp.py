"""The MLP projector of LLaVA-1.5 (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mllm.projectors.base import Grid, OnePerToken, depth_of, mlp


class Mlp(OnePerToken):
    """``depth`` linears with GELU between them; ``hidden`` is the width between, 0 for the language model's."""

    name = "mlp"
    defaults = {"depth": 2, "hidden": 0}  # noqa: RUF012

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """``depth`` linears with GELU between them."""
        return mlp(sum(widths), outputs, depth_of(options), int(options["hidden"]))
