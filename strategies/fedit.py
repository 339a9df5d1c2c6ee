"""FedIT: FedAvg on the LoRA factors (Zhang et al. 2023, "Towards Building the Federated GPT", arXiv 2305.05644).

A <- sum_k p_k A_k,    B <- sum_k p_k B_k        (p_k: client k's share of the weights)
"""

from __future__ import annotations

from strategies.base import AdapterStrategy, StrategyFacts, StrategyState, apply_mean
from umbel.adapter import AdapterSpec, Vector


class FedIT(AdapterStrategy):
    """Averages A and B separately.

    Not exact: mean(B) mean(A) differs from mean(B A). Under noise on both factors the product carries the noise
    of each times the other, and the product of the two noises. Up and down: both factors of every layer.
    """

    name = "fedit"
    facts = StrategyFacts(
        paper="Zhang et al. 2023, arXiv 2305.05644",
        linear=True,
        exact=False,
        private=False,
        heterogeneous_ranks=False,
        note="FedAvg on both factors; simple, inexact when clients differ.",
    )

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Adds the mean difference of both factors."""
        up = self.upload_spec(spec, round_number)
        return StrategyState({**state.arrays, "adapter": apply_mean(spec, up, mean, state.adapter)})
