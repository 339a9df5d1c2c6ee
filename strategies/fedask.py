"""FedASK: the averaged product through two linear sketches (Guo et al. 2025, arXiv 2507.09990, "double sketching").

A randomised SVD (Halko et al. 2011, algorithm 4.4 with no power steps) whose two products are sums over clients:

    pass 1:  Y_k = D_k W,    Y = M W + sum p_k Y_k,    Q = qr(Y)           W [in, m] from a public seed
    pass 2:  Z_k = D_k^T Q,  Z = M^T Q + sum p_k Z_k,  Q Z^T = U S V^T     A <- V^T,  B <- U S / s

D_k = s_k B_k A_k - s B A is the client's change of the product and M = s B A the global one, so that uploads are
small differences that can be clipped and masked. Each client computes both from its factors, never densely.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays, StrategyFacts, StrategyState
from strategies.lowrank import best_factors
from strategies.ranks import cut, server_spec
from umbel.adapter import AdapterSpec, LoraPair, Vector
from umbel.errors import StrategyError

_Q = "sketch."


class FedASK(AdapterStrategy):
    """Best rank-r approximation of the exact average, under secure aggregation and with mixed ranks.

    Equal to FlexLoRA when the sketch is as wide as the rank of M plus the sum of changes (at most (K + 1) r), and,
    with A frozen, equal to FedSVD at any width of at least r. A narrower sketch loses part of the sum: measured,
    width r with both factors trained leaves a relative error of 0.55 where the optimum is 0.34.
    Up: Y [out, m], then Z [in, m]. Down: both factors, then Q [out, m].

    Args:
        sketch: m, the sketch's width; 0 takes twice the server's rank. At most min(out, in) is used in a layer.
        freeze_a: train B only, so that noise enters once (the paper's private mode).
        seed: of the public W.
        rank: the server's rank; 0 means that of the spec. Set it where clients' ranks are mixed.
    """

    name = "fedask"
    facts = StrategyFacts(
        paper="Guo et al. 2025, arXiv 2507.09990",
        linear=True,
        exact=False,
        private=False,
        heterogeneous_ranks=True,
        note="Two-pass sketch of the exact average: mixed ranks under secure aggregation.",
        fixed_basis=False,
        up="Y (out x m), Z (in x m)",
        down="A, B, Q (out x m)",
    )
    passes = 2

    def __init__(self, sketch: int = 0, freeze_a: bool = False, seed: int = 0, rank: int = 0) -> None:
        if sketch < 0:
            raise StrategyError(f"FedASK's sketch width {sketch} is negative: use 0 for the default width.")
        self.sketch, self.freeze_a, self.seed, self.rank = sketch, freeze_a, seed, rank
        if freeze_a:
            self.facts = replace(type(self).facts, private=True)

    def trainable(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """All, or all but A when A is frozen."""
        frozen = {pair.a.name for pair in spec.pairs} if self.freeze_a else set()
        return frozenset(spec.by_name) - frozen

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """The leading singular directions that the client's rank holds."""
        return cut(server_spec(state.adapter, spec), state.adapter, spec)

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """Y of each layer (named after B) and the other tensors; the same for every client rank."""
        shapes: dict[str, tuple[int, ...]] = {p.b.name: (p.b.shape[0], self._width(spec, p)) for p in spec.pairs}
        shapes.update({t.name: t.shape for t in spec.others})
        return AdapterSpec.from_shapes(shapes, spec.with_rank(self.rank or spec.lora.rank).lora)

    def pass_spec(self, spec: AdapterSpec, round_number: int, pass_number: int) -> AdapterSpec:
        """Pass 2: Z of each layer (named after A)."""
        if pass_number == 1:
            return self.upload_spec(spec, round_number)
        shapes = {p.a.name: (p.a.shape[1], self._width(spec, p)) for p in spec.pairs}
        return AdapterSpec.from_shapes(shapes, spec.with_rank(self.rank or spec.lora.rank).lora)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """Y_k of each layer and the differences of the other tensors."""
        views, start = spec.views(local), spec.views(received)
        named: dict[str, npt.NDArray[np.float32]] = {t.name: views[t.name] - start[t.name] for t in spec.others}
        for pair in spec.pairs:
            w = self._test_matrix(pair, self._width(spec, pair), round_number)
            changed = _times(views, pair, w) - _times(start, pair, w)
            named[pair.b.name] = (spec.lora.scaling * changed).astype(np.float32)
        return self.upload_spec(spec, round_number).flatten(named)

    def between(
        self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int, pass_number: int
    ) -> StrategyState:
        """Q of each layer, an orthonormal basis of Y; the other tensors move now."""
        adapter, arrays = state.adapter.copy(), dict(state.arrays)
        views, moved = spec.views(adapter), self.upload_spec(spec, round_number).views(mean)
        for tensor in spec.others:
            views[tensor.name][...] += moved[tensor.name]
        for pair in spec.pairs:
            w = self._test_matrix(pair, self._width(spec, pair), round_number)
            q, _ = np.linalg.qr(moved[pair.b.name] + spec.lora.scaling * _times(views, pair, w))
            arrays[_Q + pair.module] = q.astype(np.float32)
        return StrategyState({**arrays, "adapter": adapter})

    def extras(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """Between the passes, Q of each layer ("sketch.<module>"); nothing else."""
        return {name: array for name, array in state.arrays.items() if name.startswith(_Q)}

    def upload_pass(
        self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int, pass_number: int, extras: Arrays
    ) -> Vector:
        """Z_k of each layer.

        Raises:
            StrategyError: the extras hold no Q for a layer.
        """
        views, start, named = spec.views(local), spec.views(received), {}
        for pair in spec.pairs:
            if _Q + pair.module not in extras:
                raise StrategyError(f"FedASK's second pass lacks Q for {pair.module}: send the extras of pass 1.")
            q = extras[_Q + pair.module].astype(np.float64)
            changed = _transposed_times(views, pair, q) - _transposed_times(start, pair, q)
            named[pair.a.name] = (spec.lora.scaling * changed).astype(np.float32)
        return self.pass_spec(spec, round_number, 2).flatten(named)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """The factors of Q Z^T; ``mean`` is that of pass 2 and ``state`` that of :meth:`between`.

        Raises:
            StrategyError: :meth:`between` was not called in this round.
        """
        arrays = {name: array for name, array in state.arrays.items() if not name.startswith(_Q)}
        adapter = state.adapter.copy()
        views, moved = spec.views(adapter), self.pass_spec(spec, round_number, 2).views(mean)
        for pair in spec.pairs:
            if _Q + pair.module not in state.arrays:
                raise StrategyError("FedASK has two passes: call between with the mean of pass 1 before step.")
            q = state.arrays[_Q + pair.module].astype(np.float64)
            z = moved[pair.a.name] + spec.lora.scaling * _transposed_times(views, pair, q)
            b, a = best_factors([(q, z.T)], pair.rank, spec.lora.scaling, views[pair.a.name])
            views[pair.a.name][...], views[pair.b.name][...] = a, b
        return StrategyState({**arrays, "adapter": adapter})

    def _width(self, spec: AdapterSpec, pair: LoraPair) -> int:
        wanted = self.sketch or 2 * (self.rank or spec.lora.rank)
        return min(wanted, pair.b.shape[0], pair.a.shape[1])

    def _test_matrix(self, pair: LoraPair, width: int, round_number: int) -> npt.NDArray[np.float64]:
        """W [in, width]: Gaussian over sqrt(width), so that a sketch has about the norm of what it sketches."""
        digest = int.from_bytes(hashlib.sha256(pair.module.encode()).digest()[:8], "big")
        generator = np.random.default_rng([self.seed, round_number, digest])
        return np.asarray(generator.standard_normal((pair.a.shape[1], width)) / np.sqrt(width))


def _times(views: Arrays, pair: LoraPair, w: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """B (A w), [out, width]."""
    return np.asarray(views[pair.b.name] @ (views[pair.a.name] @ w))


def _transposed_times(views: Arrays, pair: LoraPair, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A^T (B^T q), [in, width]."""
    return np.asarray(views[pair.a.name].T @ (views[pair.b.name].T @ q))
