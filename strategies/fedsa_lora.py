"""FedSA-LoRA: A is shared, B stays at its client (Guo et al. 2024, arXiv 2410.01463, section 4).

A <- sum_k p_k A_k;    client k keeps B_k and computes with s B_k A
"""

from __future__ import annotations

from strategies.base import StrategyFacts
from strategies.fedit import FedIT
from umbel.adapter import AdapterSpec


class FedSALora(FedIT):
    """Trains both factors and sends only A.

    The global adapter alone is not a model: its B keeps the initial value, so evaluation belongs to the clients.
    A client that has never trained starts from the initial B. Up and down: A of every layer.
    """

    name = "fedsa-lora"
    facts = StrategyFacts(
        paper="Guo et al. 2024, arXiv 2410.01463",
        linear=True,
        exact=False,
        private=True,
        heterogeneous_ranks=False,
        note="A shared, B personal: for clients whose tasks differ; evaluate at the clients.",
        personal=True,
        up="A",
        down="A",
    )

    def personal(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """The B factors."""
        return frozenset(pair.b.name for pair in spec.pairs)

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """Everything but the B factors."""
        personal = self.personal(spec, round_number)
        return spec.select(lambda name: name not in personal)
