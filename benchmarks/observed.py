"""What a benchmark sees that a coordinator must not: every client's own adapter after training.

Only for measuring, in one process over the in-memory grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import Context
from flwr.clientapp import ClientApp

from client.client_app import make_app
from client.local_site import LocalSite
from client.site import Site
from client.store import ContextStore
from strategies.base import AdapterStrategy, Arrays
from strategies.client_round import ClientRound, WrappedRound
from strategies.wrapper import Wrapper
from umbel.adapter import AdapterSpec, Vector
from umbel.config import RunConfig
from umbel.side import read_side

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One client's last round: what it was sent and what it had after training."""

    received: Vector
    extras: dict[str, npt.NDArray[np.float32]]
    local: Vector
    kept: dict[str, npt.NDArray[np.float32]]


@dataclass
class Observations:
    """The last round of every client, by the site's name."""

    last: dict[str, Seen] = field(default_factory=dict)


class _Observed(Wrapper):
    """The site's strategy, with the adapter noted at the moment when the upload is made from it."""

    def __init__(self, inner: AdapterStrategy, site: str, seen: Observations) -> None:
        super().__init__(inner, "observed")
        self.name, self._site, self._seen = inner.name, site, seen

    def begin(
        self,
        spec: AdapterSpec,
        received: Vector,
        round_number: int,
        extras: Arrays | None = None,
        kept: Arrays | None = None,
    ) -> ClientRound:
        inner = self.inner.begin(spec, received, round_number, extras, kept)

        def note(local: Vector, stays: dict[str, npt.NDArray[np.float32]]) -> None:
            self._seen.last[self._site] = Seen(received.copy(), dict(extras or {}), local.copy(), stays)

        return _ObservedRound(self, inner, note)


class _ObservedRound(WrappedRound):
    def __init__(
        self,
        strategy: AdapterStrategy,
        inner: ClientRound,
        note: Callable[[Vector, dict[str, npt.NDArray[np.float32]]], None],
    ) -> None:
        super().__init__(strategy, inner)
        self._note = note

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        upload = self.inner.finish(local, steps=steps, learning_rate=learning_rate)
        self._note(local, self.inner.keep(local))
        return upload


class ObservedSite(LocalSite):
    """A site of the simulation that tells the benchmark what it trained."""

    def __init__(
        self, config: RunConfig, index: int, count: int, store: ContextStore, *, run: str, seen: Observations
    ) -> None:
        super().__init__(config, index, count, store, run=run)
        self._strategy = _Observed(self._strategy, self.name, seen)


def observed_app(seen: Observations) -> ClientApp:
    """A ClientApp whose sites fill ``seen``."""

    def opener(context: Context) -> Site:
        config = RunConfig.from_flat(context.run_config)
        index, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        return ObservedSite(config, index, count, ContextStore(context.state), run=str(context.run_id), seen=seen)

    return make_app(opener)


def products(spec: AdapterSpec, adapter: Vector, arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, F64]:
    """What each layer adds to its frozen weight, [out, in] float64: s B A and the side term."""
    views, side = spec.views(adapter), read_side(arrays)
    result: dict[str, F64] = {}
    for pair in spec.pairs:
        a, b = views[pair.a.name].astype(np.float64), views[pair.b.name].astype(np.float64)
        result[pair.module] = spec.lora.scaling * (b @ a)
        if pair.module in side:
            term = side[pair.module]
            result[pair.module] += term.b.astype(np.float64) @ term.a.astype(np.float64)
    return result


def aggregate_error(
    spec: AdapterSpec, clients: Sequence[Seen], adapter: Vector, arrays: Mapping[str, npt.NDArray[np.float32]]
) -> float:
    """How far one round's aggregate is from the exact average of what its clients learned.

    ||P - M||_F / ||M - P0||_F over all layers, where P0 is the product that was sent, M the mean of the clients'
    products after training and P the product after aggregation: 0 for an exact method, 1 for one that learns nothing.

    Args:
        spec: of the adapter.
        clients: all of one round, weighed alike.
        adapter: after aggregation.
        arrays: of the strategy's state after aggregation, for its side terms.
    """
    before = products(spec, clients[0].received, clients[0].extras)
    locals_ = [products(spec, seen.local, seen.extras) for seen in clients]
    after = products(spec, adapter, arrays)
    wrong = moved = 0.0
    for module, start in before.items():
        mean = np.mean([found[module] for found in locals_], axis=0)
        wrong += float(((after[module] - mean) ** 2).sum())
        moved += float(((mean - start) ** 2).sum())
    return float(np.sqrt(wrong / moved)) if moved else float("nan")
