"""White-box gradient canaries: examples whose gradient is one coordinate of one weight, far above C.

A canary calls one of the trained layers of the real model with a unit vector and takes one output: its gradient is a
single entry of that layer's weight. It passes through the engine's own hooks, clipping and sum, and through the real
noise; canaries on different entries do not touch. The adversary sees every released sum (the strongest that DP-SGD's
accounting allows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.clipping.claims import Claim, Kind, claim
from privacy.clipping.engine import GradientEngine
from privacy.noise import SYSTEM, NoiseSource, add_gaussian_
from umbel.errors import PrivacyError
from umbel.rows import RowMap

Release = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From the clipped sum of a step to what is released: the noise of the mechanism under audit."""


@dataclass(frozen=True, eq=False)
class GradientCanaries:
    """``count`` canaries on distinct weight entries of trained layers without bias.

    Attributes:
        layers: the layers that carry canaries.
        layer: int64 [m], which of them.
        row, column: int64 [m], the weight entry.
        loudness: norm of a canary's gradient before clipping.
    """

    layers: tuple[Claim, ...]
    layer: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    loudness: float

    @classmethod
    def on(
        cls, engine: GradientEngine, count: int, clipping_norm: float, source: NoiseSource = SYSTEM
    ) -> GradientCanaries:
        """Canaries on entries drawn without replacement from all trained linear weights.

        Raises:
            PrivacyError: the model has fewer such entries than ``count``, or ``count`` is below 1.
        """
        layers = tuple(
            c for c in claim(engine.model, engine.trainable) if c.kind is Kind.LINEAR and c.weight and c.bias is None
        )
        sizes = [engine.trainable[str(c.weight)].numel() for c in layers]
        if not 1 <= count <= sum(sizes):
            raise PrivacyError(
                f"{count} gradient canaries do not fit {sum(sizes)} trained weight entries: ask for between 1 and that."
            )
        chosen = np.argsort(source.uniform(sum(sizes)), kind="stable")[:count]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        layer = np.searchsorted(starts, chosen, side="right") - 1
        widths = np.array([engine.trainable[str(c.weight)].shape[1] for c in layers])[layer]
        local = chosen - starts[layer]
        return cls(layers, layer, local // widths, local % widths, 100.0 * clipping_norm)

    def __len__(self) -> int:
        return len(self.layer)

    def accumulate(self, engine: GradientEngine, present: npt.NDArray[np.bool_]) -> None:
        """Adds the present canaries of a step to the engine's sum, as examples of their own."""
        for index, one in enumerate(self.layers):
            mine = np.flatnonzero(present & (self.layer == index))
            if len(mine):
                engine.accumulate(
                    self._forward(one.module), torch.from_numpy(mine), RowMap.batch(len(mine)), len(mine), _split
                )

    def _forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        weight = module._parameters["weight"]
        assert weight is not None

        def forward(chosen: Tensor) -> Tensor:
            places = torch.arange(len(chosen))
            unit = weight.new_zeros(len(chosen), weight.shape[1])
            unit[places, torch.from_numpy(self.column)[chosen]] = 1.0
            out: Tensor = module(unit)[places, torch.from_numpy(self.row)[chosen]]
            return self.loudness * out

        return forward

    def read(self, released: dict[str, Tensor]) -> npt.NDArray[np.float64]:
        """The released value at each canary's entry, float64 [m]."""
        values = np.empty(len(self))
        for index, one in enumerate(self.layers):
            mine = np.flatnonzero(self.layer == index)
            table = released[str(one.weight)].detach().cpu().double().numpy()
            values[mine] = table[self.row[mine], self.column[mine]]
        return values


def _split(chosen: Tensor, index: int) -> Tensor:
    return chosen[index : index + 1]


def gaussian_release(noise_multiplier: float, clipping_norm: float, source: NoiseSource = SYSTEM) -> Release:
    """Adds N(0, (noise_multiplier * C)^2) to every entry of the sum, as DP-SGD does."""

    def release(total: dict[str, Tensor]) -> dict[str, Tensor]:
        for value in total.values():
            add_gaussian_(value, noise_multiplier * clipping_norm, source)
        return total

    return release


def canary_scores(
    engine: GradientEngine,
    canaries: GradientCanaries,
    members: npt.NDArray[np.bool_],
    release: Release,
    *,
    clipping_norm: float,
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    real: Sequence[Callable[[], None]] = (),
    apply: Callable[[dict[str, Tensor]], None] | None = None,
    source: NoiseSource = SYSTEM,
) -> npt.NDArray[np.float64]:
    """Runs DP-SGD with the canaries among its examples and scores each by its log likelihood ratio of being a member.

    Args:
        engine: the engine under audit, with an empty sum.
        canaries: of this engine's model.
        members: bool [m], the coins: a canary takes part in the run at all.
        release: the noise under audit.
        clipping_norm, noise_multiplier, sampling_rate, steps: as claimed; they shape the score, and a wrong one makes
            the audit weaker, never unsound.
        real: per step, something that accumulates the step's real examples; reused in turn, none by default.
        apply: what to do with a released sum: the optimizer step.
        source: of the Poisson sampling.

    Returns:
        float64 [m]; higher means likelier in.
    """
    scores = np.zeros(len(canaries))
    for step in range(steps):
        present = members & (source.uniform(len(canaries)) < sampling_rate)
        canaries.accumulate(engine, present)
        if real:
            real[step % len(real)]()
        released = release(engine.take())
        # Log of ((1 - q) N(0, s) + q N(1, s)) / N(0, s) at the released value in units of C.
        exponent = (2 * canaries.read(released) / clipping_norm - 1) / (2 * noise_multiplier**2)
        if sampling_rate == 1:
            scores += exponent
        else:
            scores += np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + exponent)
        if apply is not None:
            apply(released)
    return scores


def coins(count: int, source: NoiseSource = SYSTEM) -> npt.NDArray[np.bool_]:
    """``count`` independent fair coins."""
    return source.uniform(count) < 0.5
