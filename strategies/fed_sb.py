"""Fed-SB: only an r x r core travels (Singhal et al. 2025, arXiv 2502.15436).

    delta W = s B_0 R A_0 with B_0, A_0 fixed and orthonormal;    R <- sum_k p_k R_k, exact

The paper takes B_0 and A_0 from an SVD of the first full gradient over pooled data, which would leak; here they are
random orthonormal matrices from a public seed, made alike on every machine. The model holds B = B_0 R and A = A_0 in
ordinary LoRA factors: a step on R is a step on B projected onto the columns of B_0, and the client hooks keep
B there under any optimizer.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays, StrategyFacts, StrategyState
from strategies.client_round import ClientRound, Views, WrappedRound
from strategies.lowrank import orthonormal
from umbel.adapter import AdapterSpec, LoraPair, Vector
from umbel.errors import StrategyError


class FedSB(AdapterStrategy):
    """Federates the r x r cores of all layers.

    Exact and linear: noise enters once, in r^2 coordinates a layer, so ranks can be large. Up: R. Down: B, or R
    where bytes matter (B_0 is public). Needs r <= out and r <= in for every layer.

    Args:
        seed: of the public bases; the same at every participant.
    """

    name = "fed-sb"
    facts = StrategyFacts(
        paper="Singhal et al. 2025, arXiv 2502.15436",
        linear=True,
        exact=True,
        private=True,
        heterogeneous_ranks=False,
        note="Only an r x r core a layer: exact, tiny uploads, large ranks, little noise.",
        up="R (r x r)",
        down="B = B_0 R",
    )

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def basis(self, pair: LoraPair) -> npt.NDArray[np.float64]:
        """B_0 of a layer: [out, r] with orthonormal columns, a function of seed, module and shape alone."""
        return _basis(self.seed, pair.module, 0, pair.b.shape[0], pair.rank)

    def initial(self, spec: AdapterSpec, adapter: Vector) -> StrategyState:
        """B = 0 (R = 0) and orthonormal rows for A; other tensors as given."""
        state = super().initial(spec, adapter)
        views = spec.views(state.adapter)
        for pair in spec.pairs:
            if pair.rank > min(pair.b.shape[0], pair.a.shape[1]):
                raise StrategyError(
                    f"Fed-SB cannot make {pair.rank} orthonormal directions in {pair.module} of shape "
                    f"{pair.b.shape[0]}x{pair.a.shape[1]}: lower lora.rank."
                )
            views[pair.a.name][...] = _basis(self.seed, pair.module, 1, pair.a.shape[1], pair.rank).T
            views[pair.b.name][...] = 0
        return state

    def trainable(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """Everything but the A factors."""
        return frozenset(spec.by_name) - {pair.a.name for pair in spec.pairs}

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """One [r, r] core in place of each B, and the other tensors."""
        shapes = {t.name: t.shape for t in spec if t.name in self.trainable(spec, round_number)}
        shapes.update({pair.b.name: (pair.rank, pair.rank) for pair in spec.pairs})
        return AdapterSpec.from_shapes(shapes, spec.lora)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """B_0^T (B_local - B_received) of each layer: the change of R."""
        views, start = spec.views(local), spec.views(received)
        up = self.upload_spec(spec, round_number)
        moved = {t.name: views[t.name] - start[t.name] for t in up}
        for pair in spec.pairs:
            moved[pair.b.name] = (self.basis(pair).T @ moved[pair.b.name]).astype(np.float32)
        return up.flatten(moved)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """B <- B + B_0 mean(change of R)."""
        adapter = state.adapter.copy()
        views, moved = spec.views(adapter), self.upload_spec(spec, round_number).views(mean)
        for pair in spec.pairs:
            views[pair.b.name][...] += self.basis(pair) @ moved[pair.b.name]
        for tensor in spec.others:
            views[tensor.name][...] += moved[tensor.name]
        return StrategyState({**state.arrays, "adapter": adapter})

    def begin(
        self,
        spec: AdapterSpec,
        received: Vector,
        round_number: int,
        extras: Arrays | None = None,
        kept: Arrays | None = None,
    ) -> ClientRound:
        """A round whose hooks keep B in the columns of B_0."""
        return _InSubspace(self, super().begin(spec, received, round_number, extras, kept))


class _InSubspace(WrappedRound):
    """Projects gradients and parameters of B onto the columns of B_0."""

    def __init__(self, strategy: FedSB, inner: ClientRound) -> None:
        super().__init__(strategy, inner)
        self._bases = {pair.b.name: strategy.basis(pair) for pair in inner.spec.pairs}

    @property
    def hooked(self) -> bool:
        """Always: the projection is the method."""
        return True

    def gradient(self, gradient: Views, parameters: Views) -> None:
        """B's gradient becomes that of R, seen through B_0."""
        self._project(gradient)

    def after_step(self, parameters: Views) -> None:
        """B returns to the columns of B_0, which an adaptive optimizer may have left."""
        self._project(parameters)

    def _project(self, views: Views) -> None:
        for name, basis in self._bases.items():
            if name in views:
                views[name][...] = basis @ (basis.T @ views[name])


@lru_cache(maxsize=4096)
def _basis(seed: int, module: str, side: int, rows: int, columns: int) -> npt.NDArray[np.float64]:
    digest = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big")
    basis = orthonormal(rows, columns, [seed, digest, side])
    basis.setflags(write=False)
    return basis
