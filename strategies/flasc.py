"""FLASC: dense local training, sparse communication (Kuo et al. 2024, arXiv 2406.05233).

The paper sends each client's own largest entries. Those differ between clients, so a masked sum could not be read
and the choice itself would leak; here one mask serves the whole cohort. It is computed by everyone from what
everyone holds (the received adapter and the round): in each tensor, ``1 - explore`` of the budget goes to the
largest entries and the rest to random ones, so that a B that starts at zero can grow.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, StrategyFacts, StrategyState
from umbel.adapter import AdapterSpec, TensorSpec, Vector
from umbel.errors import StrategyError


class Flasc(AdapterStrategy):
    """FedIT on a common sparse mask that moves every round.

    Inside the mask it is FedIT; outside, what clients learned stays behind. Up: ``density`` of both factors. Down:
    both factors.

    Args:
        density: share of each tensor's entries that goes up, in (0, 1]; at least one entry.
        explore: share of those that is drawn at random, in [0, 1].
        seed: of the random part.
    """

    name = "flasc"
    facts = StrategyFacts(
        paper="Kuo et al. 2024, arXiv 2406.05233",
        linear=True,
        exact=False,
        private=False,
        heterogeneous_ranks=False,
        note="Trains densely, sends a common sparse mask: few bytes, works under secure aggregation.",
        fixed_basis=False,
        up="density of A, B",
    )

    def __init__(self, density: float = 0.25, explore: float = 0.5, seed: int = 0) -> None:
        if not 0 < density <= 1:
            raise StrategyError(f"FLASC's density {density} is outside (0, 1]: 0.25 sends a quarter of the entries.")
        if not 0 <= explore <= 1:
            raise StrategyError(f"FLASC's explore {explore} is outside [0, 1]: 0.5 draws half of the entries.")
        self.density, self.explore, self.seed = density, explore, seed

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """The same names, each a vector of the entries that go up."""
        return AdapterSpec.from_shapes({t.name: (self._count(t),) for t in spec}, spec.lora)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """The masked entries of the difference."""
        difference = spec.views(local - received)
        chosen = self.mask(spec, received, round_number)
        return self.upload_spec(spec, round_number).flatten(
            {name: difference[name].ravel()[index] for name, index in chosen.items()}
        )

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Adds the mean to the masked entries."""
        adapter = state.adapter.copy()
        views, moved = spec.views(adapter), self.upload_spec(spec, round_number).views(mean)
        for name, index in self.mask(spec, self.download(state, spec, round_number), round_number).items():
            views[name].reshape(-1)[index] += moved[name]
        return StrategyState({**state.arrays, "adapter": adapter})

    def mask(self, spec: AdapterSpec, received: Vector, round_number: int) -> dict[str, npt.NDArray[np.int64]]:
        """Sorted flat indices of each tensor's entries that go up in this round."""
        views, result = spec.views(received), {}
        for tensor in spec:
            count = self._count(tensor)
            top = count - round(self.explore * count)
            magnitude = np.abs(views[tensor.name]).ravel()
            digest = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "big")
            order = np.random.default_rng([self.seed, round_number, digest]).permutation(tensor.size)
            # A stable sort of the shuffled entries: ties (a B of zeros) are broken at random.
            best = order[np.argsort(-magnitude[order], kind="stable")[:top]]
            taken = np.zeros(tensor.size, dtype=bool)
            taken[best] = True
            rest = order[~taken[order]][: count - top]
            result[tensor.name] = np.sort(np.concatenate([best, rest]))
        return result

    def _count(self, tensor: TensorSpec) -> int:
        return max(math.ceil(self.density * tensor.size), 1)
