"""FLoRA: clients' factors are stacked, not averaged (Wang et al. 2024, arXiv 2409.05976, section 3).

    side <- side + sum_k p_k s_k B_k A_k = side + [p_1 s_1 B_1 .. p_K s_K B_K] [A_1; ..; A_K],    A fresh,  B <- 0

Each share is applied once, to B. Clients start the next round from a new A and B = 0 over the moved base; as the
base is quantized and read-only, it moves in a side term (see :mod:`strategies.side`).
"""

from __future__ import annotations

import hashlib

import numpy as np

from strategies.base import StrategyFacts
from strategies.individual import Individual, Layer
from strategies.side import grow


class FLora(Individual):
    """Exact for any mix of ranks, without secure aggregation and without differential privacy.

    Up: both factors at the client's own rank. Down: the side term (the paper sends the stack; refactored it is
    never larger) and new factors, whose product is zero.

    Args:
        side_rank: largest rank of a side term; 0 keeps it exact to float32.
        seed: of the fresh A factors (uniform within 1/sqrt(in), as LoRA initialises).
    """

    name = "flora"
    facts = StrategyFacts(
        paper="Wang et al. 2024, arXiv 2409.05976",
        linear=False,
        exact=True,
        private=False,
        heterogeneous_ranks=True,
        note="Stacks the clients' factors into a side term: exact for mixed ranks, large downloads, no DP.",
        fixed_basis=False,
        down="A, B, side term",
    )

    needs = "FLoRA stacks every client's own factors"

    def __init__(self, side_rank: int = 0, seed: int = 0) -> None:
        self.side_rank = side_rank
        self.seed = seed

    def merge(self, layer: Layer) -> None:
        """Adds the stacked products to the side term and renews the factors."""
        pair, views, side = layer.pair, layer.views, layer.side
        side[pair.module] = grow(side.get(pair.module), layer.factors, self.side_rank)
        digest = int.from_bytes(hashlib.sha256(pair.module.encode()).digest()[:8], "big")
        generator = np.random.default_rng([self.seed, layer.round_number, digest])
        bound = 1.0 / np.sqrt(pair.a.shape[1])
        views[pair.a.name][...] = generator.uniform(-bound, bound, pair.a.shape)
        views[pair.b.name][...] = 0
