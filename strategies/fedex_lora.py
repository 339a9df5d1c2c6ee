"""FedEx-LoRA: averaged factors plus the residual that makes them exact (Singhal et al. 2024, arXiv 2410.09432).

    A <- sum p_k A_k,    B <- sum p_k B_k,    side <- side + s (sum p_k B_k A_k - B A)

The paper adds the residual to the base weight. A quantized base is read-only, so it is kept beside the base as
a low-rank side term of rank at most (K + 1) r more a round (see :mod:`strategies.side`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.base import AdapterStrategy, StrategyFacts, StrategyState, Upload
from strategies.ranks import mean_of_others, rebuild
from strategies.side import grow, write_side
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError


class FedExLora(AdapterStrategy):
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

    def __init__(self, side_rank: int = 0) -> None:
        self.side_rank = side_rank

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Always raises StrategyError: the residual cannot be had from the mean."""
        raise StrategyError("FedEx-LoRA needs every client's own factors: switch secure aggregation off.")

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """Averages the factors and moves the residual into the side terms."""
        if any(upload.rank != spec.lora.rank for upload in uploads):
            raise StrategyError("FedEx-LoRA averages factors of one rank: give every client the server's lora.rank.")
        locals_ = rebuild(self, spec, uploads, state, round_number)
        adapter = mean_of_others(spec, locals_, state.adapter)
        views, terms = spec.views(adapter), self.side(state.arrays)
        for pair in spec.pairs:
            clients = [(local.share, spec.views(local.vector)) for local in locals_]
            for name in (pair.a.name, pair.b.name):
                views[name][...] = sum(share * own[name].astype(np.float64) for share, own in clients)
            averaged = -spec.lora.scaling * views[pair.b.name].astype(np.float64), views[pair.a.name]
            factors = [local.factors(pair) for local in locals_]
            if len(factors) > 1:
                terms[pair.module] = grow(terms.get(pair.module), [*factors, averaged], self.side_rank)
        return StrategyState({**state.arrays, **write_side(terms), "adapter": adapter})
