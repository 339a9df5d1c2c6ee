"""FlexLoRA: the best rank-r approximation of the averaged product (Bai et al. 2024, arXiv 2402.11505, section 3).

    M = sum_k p_k s_k B_k A_k = U S V^T;    client i:  A <- V[:, :r_i]^T,  B <- U S[:r_i] / s_i

M is never formed: QR of the stacked factors and an SVD of the small core (:mod:`strategies.lowrank`). The scale
alpha/r of each client is inside M and taken out again for each rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from strategies.base import AdapterStrategy, StrategyFacts, StrategyState, Upload
from strategies.lowrank import best_factors
from strategies.ranks import cut, mean_of_others, rebuild, server_spec
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError


class FlexLora(AdapterStrategy):
    """SVD of the averaged product, cut to each client's rank.

    Not exact when the average has a rank above the server's: the tail of its singular values is lost, the least
    that any rank-r method can lose. Up and down: both factors at the client's rank.
    """

    name = "flexlora"
    facts = StrategyFacts(
        paper="Bai et al. 2024, arXiv 2402.11505",
        linear=False,
        exact=False,
        private=False,
        heterogeneous_ranks=True,
        note="Best rank-r approximation of the exact average; mixed ranks.",
        fixed_basis=False,
    )

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """The leading singular directions that the client's rank holds."""
        return cut(server_spec(state.adapter, spec), state.adapter, spec)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Always raises StrategyError: products cannot be had from the mean."""
        raise StrategyError("FlexLoRA multiplies every client's own factors: switch secure aggregation off.")

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """The best factors of the averaged product."""
        locals_ = rebuild(self, spec, uploads, state, round_number)
        adapter = mean_of_others(spec, locals_, state.adapter)
        views = spec.views(adapter)
        for pair in spec.pairs:
            factors = [local.factors(pair) for local in locals_]
            b, a = best_factors(factors, pair.rank, spec.lora.scaling, views[pair.a.name])
            views[pair.a.name][...], views[pair.b.name][...] = a, b
        return StrategyState({**state.arrays, "adapter": adapter})
