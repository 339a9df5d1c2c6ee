"""FedEx-LoRA: averaged factors plus the residual that makes them exact (Singhal et al. 2024, arXiv 2410.09432).

    A <- sum p_k A_k,    B <- sum p_k B_k,    side <- side + s (sum p_k B_k A_k - B A)

The paper adds the residual to the base weight. A quantized base is read-only, so it is kept beside the base as
a low-rank side term of rank at most (K + 1) r more a round (see :mod:`strategies.side`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.base import StrategyFacts
from strategies.individual import Individual, Views
from strategies.ranks import Local
from strategies.side import grow
from umbel.adapter import AdapterSpec, LoraPair
from umbel.side import SideTerm


class FedExLora(Individual):
    """FedIT made exact by a residual.

    Needs each client's factors, so no secure aggregation. Up: both factors. Down: both factors and the side term,
    which grows towards full rank over the rounds unless ``side_rank`` caps it (then the best approximation of
    that rank is kept and the aggregate is exact only up to what was cut).

    Args:
        side_rank: largest rank of a side term; 0 keeps it exact to float32.
    """

    name = "fedex-lora"
    facts = StrategyFacts(
        paper="Singhal et al. 2024, arXiv 2410.09432",
        linear=False,
        exact=True,
        private=False,
        heterogeneous_ranks=False,
        note="FedIT plus its residual beside the frozen base: exact, the side term grows.",
        down="A, B, side term",
    )

    needs = "FedEx-LoRA needs every client's own factors"

    def __init__(self, side_rank: int = 0) -> None:
        self.side_rank = side_rank

    def merge(
        self,
        spec: AdapterSpec,
        pair: LoraPair,
        locals_: Sequence[Local],
        padded: Sequence[Views],
        views: Views,
        side: dict[str, SideTerm],
        round_number: int,
    ) -> None:
        """Averages the factors and moves the residual into the side term."""
        for name in (pair.a.name, pair.b.name):
            views[name][...] = sum(
                local.share * own[name].astype(np.float64) for local, own in zip(locals_, padded, strict=True)
            )
        averaged = -spec.lora.scaling * views[pair.b.name].astype(np.float64), views[pair.a.name]
        if len(locals_) > 1:
            factors = [local.factors(pair) for local in locals_]
            side[pair.module] = grow(side.get(pair.module), [*factors, averaged], self.side_rank)
