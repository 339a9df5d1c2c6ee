"""FedEx-LoRA: averaged factors plus the residual that makes them exact (Singhal et al. 2024, arXiv 2410.09432).

    A <- sum p_k A_k,    B <- sum p_k B_k,    side <- side + s (sum p_k B_k A_k - B A)

The paper adds the residual to the base weight. A quantized base is read-only, so it is kept beside the base as
a low-rank side term of rank at most (K + 1) r more a round (see :mod:`strategies.side`).
"""

from __future__ import annotations

import numpy as np

from strategies.base import StrategyFacts
from strategies.individual import Individual, Layer
from strategies.side import grow


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

    def merge(self, layer: Layer) -> None:
        """Averages the factors and moves the residual into the side term."""
        pair, views = layer.pair, layer.views
        for name in (pair.a.name, pair.b.name):
            views[name][...] = layer.mean(name)
        averaged = -layer.spec.lora.scaling * views[pair.b.name].astype(np.float64), views[pair.a.name]
        if len(layer.locals_) > 1:
            old = layer.side.get(pair.module)
            layer.side[pair.module] = grow(old, [*layer.factors, averaged], self.side_rank)
