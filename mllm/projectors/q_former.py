"""BLIP-2's Q-Former (Li et al. 2023), with one linear after it, or two (TinyGPT-V, Yuan et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mllm.projectors.base import Grid, Projector, depth_of, divisible, positive


class QFormerProjector(nn.Module):
    """Learned queries through ``Blip2QFormerModel``, then linears without activation between them."""

    def __init__(self, config: Any, inputs: int, queries: int, widths: Sequence[int], norm: bool) -> None:
        super().__init__()
        from transformers import Blip2QFormerModel

        self.norm = nn.LayerNorm(inputs) if norm else nn.Identity()
        self.query = nn.Parameter(torch.empty(1, queries, config.hidden_size))
        nn.init.normal_(self.query, std=0.02)
        self.qformer = Blip2QFormerModel(config)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[images, tokens, inputs] to [images, queries, outputs]."""
        x: torch.Tensor = self.qformer(
            query_embeds=self.query.expand(tokens.shape[0], -1, -1), encoder_hidden_states=self.norm(tokens)
        ).last_hidden_state
        for linear in self.linears:
            x = linear(x)
        return x


class QFormer(Projector):
    """``queries`` tokens; cross-attention in every second layer.

    Options: ``width``, ``layers`` and ``heads`` of the Q-Former; ``depth`` linears after it, ``hidden`` wide between;
    ``norm`` 0 where the tower normalises its output itself.
    """

    name = "q-former"
    defaults = {"queries": 32, "width": 768, "layers": 12, "heads": 12, "depth": 1, "hidden": 4096, "norm": 1}  # noqa: RUF012

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """As many as there are queries."""
        positive(self.name, options, "queries", "width", "layers", "heads", "hidden")
        return int(options["queries"])

    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """Queries, Q-Former, linears."""
        from transformers import Blip2QFormerConfig

        queries, inner = self.tokens(options, grid), int(options["width"])
        divisible(self.name, "heads", inner, int(options["heads"]))
        config = Blip2QFormerConfig(
            hidden_size=inner,
            intermediate_size=4 * inner,
            num_hidden_layers=int(options["layers"]),
            num_attention_heads=int(options["heads"]),
            encoder_hidden_size=sum(widths),
            cross_attention_frequency=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            use_qformer_text_input=False,
        )
        linears = [inner, *[int(options["hidden"])] * (depth_of(options) - 1), outputs]
        return QFormerProjector(config, sum(widths), queries, linears, bool(options["norm"]))

    def tiny(self) -> dict[str, Any]:
        """Four queries, two layers of width 64."""
        return {"queries": 4, "width": 64, "layers": 2, "heads": 4, "depth": 2, "hidden": 64}
