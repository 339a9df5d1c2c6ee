"""What composes around a strategy: a strategy that holds another and changes part of what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays, StrategyState, Upload
from strategies.client_round import ClientRound
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError


class Wrapper(AdapterStrategy):
    """Passes everything on to ``inner``; its name is "inner+what", its facts those of ``inner``."""

    def __init__(self, inner: AdapterStrategy, what: str, **changed: object) -> None:
        self.inner = inner
        self.name = f"{inner.name}+{what}"
        self.facts = replace(inner.facts, **changed)  # type: ignore[arg-type]
        self.passes = inner.passes

    def initial(self, spec: AdapterSpec, adapter: Vector) -> StrategyState:
        """As ``inner``."""
        return self.inner.initial(spec, adapter)

    def trainable(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """As ``inner``."""
        return self.inner.trainable(spec, round_number)

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """As ``inner``."""
        return self.inner.upload_spec(spec, round_number)

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """As ``inner``."""
        return self.inner.download(state, spec, round_number)

    def extras(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """As ``inner``."""
        return self.inner.extras(state, spec, round_number)

    def personal(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """As ``inner``."""
        return self.inner.personal(spec, round_number)

    def keep(self, spec: AdapterSpec, local: Vector, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """As ``inner``."""
        return self.inner.keep(spec, local, round_number)

    def restore(self, spec: AdapterSpec, received: Vector, kept: Arrays, round_number: int) -> Vector:
        """As ``inner``."""
        return self.inner.restore(spec, received, kept, round_number)

    def begin(
        self,
        spec: AdapterSpec,
        received: Vector,
        round_number: int,
        extras: Arrays | None = None,
        kept: Arrays | None = None,
    ) -> ClientRound:
        """The inner round, with :meth:`around` it."""
        inner = self.inner.begin(spec, received, round_number, extras, kept)
        return self.around(inner, extras or {}, kept or {})

    def around(self, inner: ClientRound, extras: Arrays, kept: Arrays) -> ClientRound:
        """What this wrapper adds to a client's round; nothing unless it says so."""
        return inner

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """As ``inner``."""
        return self.inner.upload(spec, local, received, round_number)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """As ``inner``."""
        return self.inner.step(spec, mean, state, round_number)

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """As ``inner``."""
        return self.inner.step_individual(spec, uploads, state, round_number)

    def pass_spec(self, spec: AdapterSpec, round_number: int, pass_number: int) -> AdapterSpec:
        """As ``inner``; pass 1 is always :meth:`upload_spec`."""
        if pass_number == 1:
            return self.upload_spec(spec, round_number)
        return self.inner.pass_spec(spec, round_number, pass_number)

    def between(
        self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int, pass_number: int
    ) -> StrategyState:
        """As ``inner``."""
        return self.inner.between(spec, mean, state, round_number, pass_number)

    def upload_pass(
        self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int, pass_number: int, extras: Arrays
    ) -> Vector:
        """As ``inner``."""
        return self.inner.upload_pass(spec, local, received, round_number, pass_number, extras)


class LinearWrapper(Wrapper):
    """A wrapper that works on the mean of uploads, so ``inner`` must be linear with a single pass."""

    def __init__(self, inner: AdapterStrategy, what: str, **changed: object) -> None:
        if not inner.facts.linear or inner.passes > 1:
            raise StrategyError(
                f"{what} works on one weighted mean a round, which strategy {inner.name!r} does not use: choose a "
                "linear method with a single pass."
            )
        super().__init__(inner, what, **changed)

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """The weighted mean of the uploads, then this wrapper's own :meth:`step`."""
        return AdapterStrategy.step_individual(self, spec, uploads, state, round_number)
