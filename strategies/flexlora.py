"""FlexLoRA: the best rank-r approximation of the averaged product (Bai et al. 2024, arXiv 2402.11505, section 3).

    M = sum_k p_k s_k B_k A_k = U S V^T;    client i:  A <- V[:, :r_i]^T,  B <- U S[:r_i] / s_i

M is never formed: QR of the stacked factors and an SVD of the small core (:mod:`strategies.lowrank`). The scale
alpha/r of each client is inside M and taken out again for each rank.
"""

from __future__ import annotations

from strategies.base import StrategyFacts
from strategies.individual import Individual, Layer
from strategies.lowrank import best_factors


class FlexLora(Individual):
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

    needs = "FlexLoRA multiplies every client's own factors"

    def merge(self, layer: Layer) -> None:
        """The best factors of the averaged product."""
        pair, views = layer.pair, layer.views
        views[pair.b.name][...], views[pair.a.name][...] = best_factors(
            layer.factors, pair.rank, layer.spec.lora.scaling, views[pair.a.name]
        )
