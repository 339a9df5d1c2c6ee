"""FedSVD: B is averaged and the factors are re-orthogonalised by SVD (Lee et al. 2025, arXiv 2505.12805).

    B <- sum_k p_k B_k with A fixed;    B A = U S V^T;    A <- V^T,  B <- U S

The product is unchanged by the second line, so the aggregate is exact, while A, frozen in training, follows the
directions that matter.
"""

from __future__ import annotations

import numpy as np

from strategies.base import StrategyFacts, StrategyState
from strategies.ffa_lora import FFALora
from strategies.lowrank import best_factors
from umbel.adapter import AdapterSpec, Vector


class FedSVD(FFALora):
    """FFA-LoRA whose A is refreshed by the server after every round.

    A gets orthonormal rows, which bounds the gradient of B under clipping. Up: B. Down: both factors, since both
    change. While B is zero, A is only orthonormalised.
    """

    name = "fedsvd"
    facts = StrategyFacts(
        paper="Lee et al. 2025, arXiv 2505.12805",
        linear=True,
        exact=True,
        private=True,
        heterogeneous_ranks=False,
        note="FFA-LoRA with A refreshed by an SVD at the server: exact and private, A adapts.",
        fixed_basis=False,
        up="B",
        down="A, B",
    )

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Adds the mean difference of B, then rotates both factors."""
        moved = super().step(spec, mean, state, round_number)
        views = spec.views(moved.adapter)
        for pair in spec.pairs:
            a, b = views[pair.a.name], views[pair.b.name]
            b[...], a[...] = best_factors([(b.astype(np.float64), a)], pair.rank, 1.0, a.copy())
        return moved
