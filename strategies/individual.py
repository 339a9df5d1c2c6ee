"""What methods share that read every client's own factors: FlexLoRA, HetLoRA, FLoRA, FedEx-LoRA, LoRA-FAIR."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, StrategyState, Upload
from strategies.ranks import Local, cut, mean_of_others, rebuild, server_spec
from umbel.adapter import AdapterSpec, LoraPair, Vector
from umbel.errors import StrategyError
from umbel.side import SideTerm, write_side

Views = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One adapted linear, as the clients returned it and as the server holds it.

    Attributes:
        spec: the server's.
        pair: of the server's spec.
        locals_: the clients' adapters at their own ranks, with their shares.
        padded: views of the same adapters with zero rows and columns up to the server's rank.
        views: the global adapter; the layer's old factors are still in it.
        side: side terms by module; replace the layer's, or leave it.
        round_number: 1-based.
    """

    spec: AdapterSpec
    pair: LoraPair
    locals_: Sequence[Local]
    padded: Sequence[Views]
    views: Views
    side: dict[str, SideTerm]
    round_number: int

    @property
    def factors(self) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Every client's (share * s * B, A) at its own rank; see ``Local.factors``."""
        return [local.factors(self.pair) for local in self.locals_]

    def mean(self, name: str, weights: Iterable[float] | None = None) -> npt.NDArray[np.float64]:
        """The weighted sum of one padded factor over the clients, float64; their shares are the weights if none are."""
        chosen = [local.share for local in self.locals_] if weights is None else weights
        return np.asarray(sum(w * own[name].astype(np.float64) for w, own in zip(chosen, self.padded, strict=True)))


class Individual(AdapterStrategy):
    """A method that merges the clients' factors layer by layer.

    Every client's adapter is rebuilt from what it was sent and the difference that it returned; tensors that are no
    LoRA factor are averaged; :meth:`merge` does the rest. Methods of mixed ranks send each client the leading part of
    the global adapter that its rank holds.
    """

    needs: str
    """What the method does with each client's own factors, for the message when only a sum is visible."""

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """The first rows of A and columns of B that the client's rank holds (mixed ranks), else all."""
        if not self.facts.heterogeneous_ranks:
            return super().download(state, spec, round_number)
        return cut(server_spec(state.adapter, spec), state.adapter, spec)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Always raises StrategyError: a mean of factors does not hold what the method reads."""
        raise StrategyError(f"{self.needs}: switch secure aggregation off.")

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """Rebuilds the clients' adapters and merges them layer by layer.

        Raises:
            StrategyError: no uploads, or ranks that differ where the method needs one.
        """
        if not self.facts.heterogeneous_ranks and any(upload.rank != spec.lora.rank for upload in uploads):
            raise StrategyError(
                f"Strategy {self.name!r} averages factors of one rank: give every client the server's lora.rank."
            )
        locals_ = rebuild(self, spec, uploads, state, round_number)
        adapter = mean_of_others(spec, locals_, state.adapter)
        views, side = spec.views(adapter), self.side(state.arrays)
        padded = [local.padded(spec) for local in locals_]
        for pair in spec.pairs:
            self.merge(Layer(spec, pair, locals_, padded, views, side, round_number))
        return StrategyState({**state.arrays, **write_side(side), "adapter": adapter})

    @abstractmethod
    def merge(self, layer: Layer) -> None:
        """Writes one layer's new factors into its views and, where the method keeps one, its new side term."""
