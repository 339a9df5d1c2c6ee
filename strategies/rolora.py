"""RoLoRA: the factors take turns (Chen et al. 2025, arXiv 2502.01755, algorithm 1).

    odd rounds:  B <- sum_k p_k B_k with A fixed;    even rounds:  A <- sum_k p_k A_k with B fixed

Each round's aggregate is linear in the factor that moves, hence exact.
"""

from __future__ import annotations

from strategies.base import StrategyFacts
from strategies.fedit import FedIT
from umbel.adapter import AdapterSpec


class RoLora(FedIT):
    """Trains and averages one factor a round, starting with B (A's gradient is zero while B is).

    Up and down: one factor a round. Other tensors (a projector trained in full) train in every round.
    """

    name = "rolora"
    facts = StrategyFacts(
        paper="Chen et al. 2025, arXiv 2502.01755",
        linear=True,
        exact=True,
        private=True,
        heterogeneous_ranks=False,
        note="B and A take turns: exact each round, half the bytes, both factors learn.",
        up="B, then A",
        down="B, then A",
    )

    def trainable(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """All but A in odd rounds, all but B in even ones."""
        frozen = {pair.a.name if round_number % 2 else pair.b.name for pair in spec.pairs}
        return frozenset(spec.by_name) - frozen
