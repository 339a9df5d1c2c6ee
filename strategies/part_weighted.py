"""Clients that lack a modality: their missing parts must not drag the average (after FedMLLM's setting).

A client without images cannot train the vision tower or the projector; its difference there is zero, and a plain mean
would shrink everybody else's. Here each upload also carries one coordinate a part, ``unit`` where the client moved
that part and 0 where it did not. The mean of a part divided by the mean of its coordinate is the weighted mean over
those who trained it:

    (sum_k p_k x_k / sum p) / (sum_k p_k 1_k / sum p) = sum_{k trained} p_k x_k / sum_{k trained} p_k

Both means are linear, so this works under secure aggregation, where nobody learns who lacks what.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from strategies.base import AdapterStrategy, Arrays, StrategyState
from strategies.client_round import ClientRound, WrappedRound
from strategies.wrapper import LinearWrapper
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError

_WEIGHT = "part.weight."


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to: "vision", "projector" or "language"."""
    low = name.lower()
    if any(
        word in low for word in ("projector", "connector", "merger", "aligner", "resampler", "qformer", "abstractor")
    ):
        return "projector"
    if any(word in low for word in ("vision", "visual", "image")):
        return "vision"
    return "language"


class PartWeighted(LinearWrapper):
    """Averages every part over the clients that trained it.

    A part counts as trained when any of its values in the upload differs from zero, so a trainer must leave a part
    without gradients as it was received (no weight decay, no noise). A part that nobody trained stays. Under noise
    the divisor is noisy too: it is taken as at least ``floor``, and clipping scales a client's coordinates
    together with its update, which lowers that client's weight and never its share.

    Args:
        inner: a linear method with one pass.
        unit: value of a coordinate; small beside the clipping norm.
        part: part of a tensor's name.
        floor: least divisor, as a share of the cohort's weight, in (0, 1].
    """

    def __init__(
        self,
        inner: AdapterStrategy,
        unit: float = 0.01,
        part: Callable[[str], str] = part_of,
        floor: float = 1e-3,
    ) -> None:
        super().__init__(inner, "parts")
        if not (np.isfinite(unit) and unit > 0 and 0 < floor <= 1):
            raise StrategyError("Part weights need a positive unit and a floor in (0, 1]: use 0.01 and 0.001.")
        self.unit, self.part, self.floor = unit, part, floor

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """The inner layout and one value a part."""
        inner = self.inner.upload_spec(spec, round_number)
        shapes = {t.name: t.shape for t in inner}
        shapes.update({_WEIGHT + name: (1,) for name in self._parts(inner)})
        return AdapterSpec.from_shapes(shapes, inner.lora)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """The inner upload and its coordinates."""
        return self.extend(spec, self.inner.upload(spec, local, received, round_number), round_number)

    def extend(self, spec: AdapterSpec, vector: Vector, round_number: int) -> Vector:
        """An inner upload with the coordinates of the parts that it moves."""
        inner = self.inner.upload_spec(spec, round_number)
        views = inner.views(vector)
        moved = {self.part(t.name) for t in inner if np.any(views[t.name])}
        weights = [self.unit if name in moved else 0.0 for name in self._parts(inner)]
        return np.concatenate([vector, np.array(weights, dtype=np.float32)])

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Divides each part by its share and hands the result to ``inner``."""
        inner = self.inner.upload_spec(spec, round_number)
        result = mean[: inner.size].copy()
        shares = dict(zip(self._parts(inner), mean[inner.size :] / self.unit, strict=True))
        for name, view in inner.views(result).items():
            share = float(shares[self.part(name)])
            view /= np.float32(max(share, self.floor))
        return self.inner.step(spec, result, state, round_number)

    def around(self, inner: ClientRound, extras: Arrays, kept: Arrays) -> ClientRound:
        """The inner round, whose upload gets the coordinates."""
        return _Extended(self, inner)

    def _parts(self, inner: AdapterSpec) -> list[str]:
        return sorted({self.part(t.name) for t in inner})


class _Extended(WrappedRound):
    def __init__(self, strategy: PartWeighted, inner: ClientRound) -> None:
        super().__init__(strategy, inner)
        self._parts = strategy

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        vector = self.inner.finish(local, steps=steps, learning_rate=learning_rate)
        return self._parts.extend(self.spec, vector, self.round_number)
