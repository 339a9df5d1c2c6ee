"""SCAFFOLD: control variates on the adapter (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II).

    client:  gradient <- gradient - c_k + c
             c_k' = c_k - c + (x - y_k) / (steps eta);   sends y_k - x and c_k' - c_k;   keeps c_k'
    server:  c <- c + participation * mean(c_k' - c_k)

x is the received adapter, y_k the trained one, eta the learning rate of plain SGD. c_k never leaves the client.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays, StrategyState
from strategies.client_round import ClientRound, Views, WrappedRound
from strategies.wrapper import LinearWrapper
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError

_CONTROL = "scaffold.control"
_OWN = "scaffold.own"
_DELTA = "scaffold.delta."
_ALLOWED = frozenset({"fedit", "ffa-lora", "fedsa-lora"})


class Scaffold(LinearWrapper):
    """A linear method of fixed basis with SCAFFOLD's drift correction.

    The upload is the inner one followed by the change of the control variate over the trainable tensors: twice the
    bytes, and one clipping norm for both. Down: also ``extras["scaffold.control"]``. Under differential privacy at
    the update both halves share the clip. A client's first round starts at c_k = 0.

    Args:
        inner: FedIT, FFA-LoRA or FedSA-LoRA (others change what they train, or hold personal parts in shared tensors).
        participation: expected share of all clients in a cohort, in (0, 1].
    """

    def __init__(self, inner: AdapterStrategy, participation: float = 1.0) -> None:
        super().__init__(inner, "scaffold")
        method, *around = inner.name.split("+")
        if method not in _ALLOWED or "padded" in around:
            raise StrategyError(
                f"Strategy {inner.name!r} does not train the same coordinates in every round, which control "
                "variates need: choose FedIT, FFA-LoRA or FedSA-LoRA, with one rank for all."
            )
        if not 0 < participation <= 1:
            raise StrategyError(f"SCAFFOLD's participation {participation} is outside (0, 1]: use cohort over clients.")
        self.participation = participation

    def controlled(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """Layout of the control variate: the tensors that travel."""
        names = frozenset(self.inner.upload_spec(spec, round_number).by_name)
        return spec.select(names.__contains__)

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """The inner layout, then the control variate's change."""
        inner = self.inner.upload_spec(spec, round_number)
        shapes = {t.name: t.shape for t in inner}
        shapes.update({_DELTA + t.name: t.shape for t in self.controlled(spec, round_number)})
        return AdapterSpec.from_shapes(shapes, inner.lora)

    def extras(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """The server's control variate, and what ``inner`` sends."""
        extras = self.inner.extras(state, spec, round_number)
        if _CONTROL in state.arrays:
            extras[_CONTROL] = state.arrays[_CONTROL]
        return extras

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """Always raises StrategyError: the upload needs the round's steps, learning rate and control variates."""
        raise StrategyError("SCAFFOLD's upload needs its control variates: use begin and finish.")

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Moves the control variate and hands the mean difference to ``inner``."""
        size = self.inner.upload_spec(spec, round_number).size
        delta = mean[size:] * np.float32(self.participation)
        control = state.arrays.get(_CONTROL)
        arrays = {**state.arrays, _CONTROL: delta if control is None else control + delta}
        return self.inner.step(spec, mean[:size], StrategyState(arrays), round_number)

    def around(self, inner: ClientRound, extras: Arrays, kept: Arrays) -> ClientRound:
        """The inner round with corrected gradients."""
        return _ScaffoldRound(self, inner, extras, kept)


class _ScaffoldRound(WrappedRound):
    def __init__(self, strategy: Scaffold, inner: ClientRound, extras: Arrays, kept: Arrays) -> None:
        super().__init__(strategy, inner)
        self._layout = strategy.controlled(inner.spec, inner.round_number)
        self._control = self._fitting(extras.get(_CONTROL))
        self._own = self._fitting(kept.get(_OWN))
        self._new = self._own

    def _fitting(self, array: npt.NDArray[np.float32] | None) -> Vector:
        return array if array is not None and array.shape == (self._layout.size,) else self._layout.zeros()

    @property
    def hooked(self) -> bool:
        return True

    def gradient(self, gradient: Views, parameters: Views) -> None:
        for name, shift in self._layout.views(self._control - self._own).items():
            if name in gradient:
                gradient[name][...] += shift
        self.inner.gradient(gradient, parameters)

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        inner = self.inner.finish(local, steps=steps, learning_rate=learning_rate)
        if steps < 1:
            self._new = self._own
        else:
            start, end = self.spec.views(self.start), self.spec.views(local)
            drift = self._layout.flatten({t.name: start[t.name] - end[t.name] for t in self._layout})
            self._new = self._own - self._control + drift / np.float32(steps * learning_rate)
        return np.concatenate([inner, self._new - self._own])

    def keep(self, local: Vector) -> dict[str, npt.NDArray[np.float32]]:
        return {**self.inner.keep(local), _OWN: self._new}
