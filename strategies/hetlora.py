"""HetLoRA: zero-padding and sparsity-weighted averaging (Cho et al. 2024, arXiv 2401.06432, section 4).

    pad A_k, B_k with zeros to the server's rank;    A <- sum_k w_k A_k,  B <- sum_k w_k B_k,
    w_k proportional to p_k ||s_k B_k A_k||_F;       client i gets the first r_i rows and columns

Padding keeps each product exactly, with B rescaled from alpha/r_k to alpha/r. The paper's self-pruning of ranks
by a client is left out: a client's rank is set by its own resources here.
"""

from __future__ import annotations

import numpy as np

from strategies.base import StrategyFacts
from strategies.individual import Individual, Layer
from strategies.lowrank import frobenius


class HetLora(Individual):
    """FedIT for mixed ranks, with more weight for clients that learned more.

    Not exact. Where every product is zero the shares alone decide. Up and down: both factors at the client's rank.
    """

    name = "hetlora"
    facts = StrategyFacts(
        paper="Cho et al. 2024, arXiv 2401.06432",
        linear=False,
        exact=False,
        private=False,
        heterogeneous_ranks=True,
        note="Zero-padded averaging weighted by the norm of each client's product; mixed ranks.",
        fixed_basis=False,
    )

    needs = "HetLoRA weighs clients by the norm of their own update"

    def merge(self, layer: Layer) -> None:
        """The sparsity-weighted mean of the padded factors."""
        pair = layer.pair
        shares = np.array([local.share for local in layer.locals_])
        raw = shares * [frobenius(own[pair.b.name], own[pair.a.name]) for own in layer.padded]
        weights = raw / raw.sum() if raw.sum() > 0 else shares
        for name in (pair.a.name, pair.b.name):
            layer.views[name][...] = layer.mean(name, weights)
