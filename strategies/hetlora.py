"""HetLoRA: zero-padding and sparsity-weighted averaging (Cho et al. 2024, arXiv 2401.06432, section 4).

    pad A_k, B_k with zeros to the server's rank;    A <- sum_k w_k A_k,  B <- sum_k w_k B_k,
    w_k proportional to p_k ||s_k B_k A_k||_F;       client i gets the first r_i rows and columns

Padding keeps each product exactly, with B rescaled from alpha/r_k to alpha/r. The paper's self-pruning of ranks
by a client is left out: a client's rank is set by its own resources here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.base import AdapterStrategy, StrategyFacts, StrategyState, Upload
from strategies.lowrank import frobenius
from strategies.ranks import cut, mean_of_others, pad, rebuild, server_spec
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError


class HetLora(AdapterStrategy):
    """FedIT for mixed ranks, with more weight for clients that learned more.

    Not exact. Where every product is zero the shares alone decide. Up and down: both factors at the client's rank.
    """

    name = "hetlora"
    facts = StrategyFacts(
        paper="Cho et al. 2024, arXiv 2401.06432",
        linear=False,
        exact=False,
        private=False,
        heterogeneous_ranks=True,
        note="Zero-padded averaging weighted by the norm of each client's product; mixed ranks.",
        fixed_basis=False,
    )

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """The first rows of A and columns of B that the client's rank holds."""
        return cut(server_spec(state.adapter, spec), state.adapter, spec)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Always raises StrategyError: the norms cannot be had from the mean."""
        raise StrategyError("HetLoRA weighs clients by the norm of their own update: switch secure aggregation off.")

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """The sparsity-weighted mean of the padded factors."""
        locals_ = rebuild(self, spec, uploads, state, round_number)
        adapter = mean_of_others(spec, locals_, state.adapter)
        views = spec.views(adapter)
        padded = [spec.views(pad(local.spec, local.vector, spec)) for local in locals_]
        for pair in spec.pairs:
            raw = np.array(
                [
                    local.share * frobenius(own[pair.b.name], own[pair.a.name])
                    for local, own in zip(locals_, padded, strict=True)
                ]
            )
            weights = raw / raw.sum() if raw.sum() > 0 else np.array([local.share for local in locals_])
            for name in (pair.a.name, pair.b.name):
                views[name][...] = sum(w * own[name].astype(np.float64) for w, own in zip(weights, padded, strict=True))
        return StrategyState({**state.arrays, "adapter": adapter})
