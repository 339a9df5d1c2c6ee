"""FFA-LoRA: A stays as initialised, B is averaged (Sun et al. 2024, arXiv 2403.12313, section 4).

A <- A_0,    B <- sum_k p_k B_k,    so B A_0 = sum_k p_k B_k A_0 exactly
"""

from __future__ import annotations

from strategies.base import StrategyFacts
from strategies.fedit import FedIT
from umbel.adapter import AdapterSpec


class FFALora(FedIT):
    """Freezes A at its random initialisation and federates B.

    Exact, because the aggregate is linear in what is trained; noise enters once, through B. Up: B. Down: B (A is
    the same in every round). The initial B must be zero or any common value; the initial A must not be zero.
    """

    name = "ffa-lora"
    facts = StrategyFacts(
        paper="Sun et al. 2024, arXiv 2403.12313",
        linear=True,
        exact=True,
        private=True,
        heterogeneous_ranks=False,
        note="A frozen, B averaged: exact, half the bytes, noise enters once.",
        up="B",
        down="B",
    )

    def trainable(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """Everything but the A factors."""
        return frozenset(spec.by_name) - {pair.a.name for pair in spec.pairs}
