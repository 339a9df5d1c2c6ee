"""Random adapters, clients and rounds for the strategies' tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from strategies.base import AdapterStrategy, StrategyState, Upload
from umbel.adapter import AdapterSpec, LoraShape

MODULES = ("model.language_model.q", "model.vision_tower.q")


@dataclass(frozen=True)
class Case:
    """A random problem: server spec, initial adapter, clients' ranks and weights, and a seed for their training."""

    spec: AdapterSpec
    adapter: np.ndarray
    ranks: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    @property
    def shares(self):
        return np.array(self.weights) / sum(self.weights)


class Bench:
    """What the tests share."""

    @staticmethod
    def spec(rank=3, alpha=6.0, rslora=False, shapes=((9, 7), (8, 10)), extra=True):
        named = {}
        for module, (out, inner) in zip(MODULES, shapes, strict=True):
            named[f"{module}.lora_A.weight"] = (rank, inner)
            named[f"{module}.lora_B.weight"] = (out, rank)
        if extra:
            named["model.projector.weight"] = (4, 3)
        return AdapterSpec.from_shapes(named, LoraShape(rank, alpha, rslora))

    @staticmethod
    def fresh(spec, seed, zero_b=False):
        vector = np.random.default_rng(seed).standard_normal(spec.size).astype(np.float32) * 0.5
        if zero_b:
            for pair in spec.pairs:
                spec.views(vector)[pair.b.name][...] = 0
        return vector

    @staticmethod
    def case(seed, clients=3, rank=3, alpha=6.0, rslora=False, mixed=False, zero_b=False, scale=1.0, **shapes):
        rng = np.random.default_rng([seed, 99])
        spec = Bench.spec(rank, alpha, rslora, **shapes)
        ranks = tuple(int(r) for r in rng.integers(1, rank + 1, clients)) if mixed else (rank,) * clients
        weights = tuple(float(w) * scale for w in rng.uniform(0.5, 5, clients))
        return Case(spec, Bench.fresh(spec, seed, zero_b), ranks, weights, seed)

    @staticmethod
    def cases(**fixed):
        """Hypothesis: random cases."""
        return st.builds(
            Bench.case,
            seed=st.integers(0, 10_000),
            clients=fixed.get("clients", st.integers(1, 5)),
            rank=fixed.get("rank", st.integers(2, 4)),
            alpha=st.floats(0.5, 32),
            rslora=st.booleans(),
            **{k: st.just(v) for k, v in fixed.items() if k not in ("clients", "rank")},
        )

    @staticmethod
    def train(strategy, spec, received, round_number, seed):
        """Random local training: every trainable tensor moves."""
        local = received.copy()
        rng, views = np.random.default_rng([seed, round_number, 7]), spec.views(local)
        for name in sorted(strategy.trainable(spec, round_number)):
            views[name] += rng.standard_normal(views[name].shape).astype(np.float32) * 0.3
        if hasattr(strategy, "basis"):
            for pair in spec.pairs:
                basis = strategy.basis(pair)
                views[pair.b.name][...] = basis @ (basis.T @ views[pair.b.name])
        return local

    @staticmethod
    def clients(strategy, case, state, round_number):
        """(specs, received, local) of every client."""
        found = []
        for index, rank in enumerate(case.ranks):
            spec = case.spec.with_rank(rank)
            received = strategy.download(state, spec, round_number)
            found.append((spec, received, Bench.train(strategy, spec, received, round_number, case.seed + 31 * index)))
        return found

    @staticmethod
    def aggregate(strategy: AdapterStrategy, spec, uploads: Sequence[Upload], state, round_number, clients=None):
        """One server step, both passes where there are two."""
        if strategy.passes == 1:
            return strategy.step_individual(spec, uploads, state, round_number)
        from strategies.mean import weighted_mean

        state = strategy.between(spec, weighted_mean(uploads), state, round_number, 1)
        extras = strategy.extras(state, spec, round_number)
        second = [
            Upload(strategy.upload_pass(s, local, received, round_number, 2, extras), u.weight, u.rank)
            for u, (s, received, local) in zip(uploads, clients, strict=True)
        ]
        return strategy.step(spec, weighted_mean(second), state, round_number)

    @staticmethod
    def round(strategy, case, state=None, round_number=1, order=None, weights=None):
        """A whole round; returns (new state, the state before, clients)."""
        state = state or strategy.initial(case.spec, case.adapter)
        clients = Bench.clients(strategy, case, state, round_number)
        weights = weights or case.weights
        uploads = [
            Upload(strategy.upload(s, local, received, round_number), w, s.lora.rank)
            for (s, received, local), w in zip(clients, weights, strict=True)
        ]
        order = list(order if order is not None else range(len(uploads)))
        new = Bench.aggregate(
            strategy, case.spec, [uploads[i] for i in order], state, round_number, [clients[i] for i in order]
        )
        return new, state, clients

    @staticmethod
    def product(spec, vector, pair):
        """s B A of one module, dense float64."""
        views = spec.views(vector)
        return spec.lora.scaling * views[pair.b.name].astype(float) @ views[pair.a.name].astype(float)

    @staticmethod
    def weight_of(strategy, spec, state: StrategyState, pair):
        """The adapted part of a weight: factors and side term."""
        total = Bench.product(spec, state.adapter, pair)
        side = strategy.side(state.arrays).get(pair.module)
        return total if side is None else total + side.b.astype(float) @ side.a.astype(float)

    @staticmethod
    def average(case, clients, index):
        """The exact weighted average of the clients' products for pair ``index``."""
        return sum(
            share * Bench.product(spec, local, spec.pairs[index])
            for share, (spec, _, local) in zip(case.shares, clients, strict=True)
        )

    @staticmethod
    def best(matrix, rank):
        """The truncated SVD of a dense matrix."""
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vt[:rank]

    @staticmethod
    def error(found, wanted):
        """Relative Frobenius error."""
        return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12))
