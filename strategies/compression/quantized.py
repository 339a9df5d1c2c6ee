"""A linear method whose uploads are quantized for the wire with error feedback.

Quantization itself acts on what leaves, after clipping and noise, so it stands beside the strategy (see
``strategies.planner.quantizer``); this wrapper only carries the memory of what rounding lost.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays
from strategies.client_round import ClientRound, WrappedRound
from strategies.compression.feedback import ErrorFeedback
from strategies.wrapper import LinearWrapper
from umbel.adapter import Vector


class Quantized(LinearWrapper):
    """Adds what the quantizer lost to the client's next upload, before it is clipped.

    Args:
        inner: a linear method with one pass, whose upload has the same layout in every round.
    """

    def __init__(self, inner: AdapterStrategy) -> None:
        super().__init__(inner, "quantize-ef")

    def around(self, inner: ClientRound, extras: Arrays, kept: Arrays) -> ClientRound:
        """The inner round with the memory in ``kept``."""
        return _QuantizedRound(self, inner, kept)


class _QuantizedRound(WrappedRound):
    def __init__(self, strategy: AdapterStrategy, inner: ClientRound, kept: Arrays) -> None:
        super().__init__(strategy, inner)
        self._feedback = ErrorFeedback(kept)

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        return self._feedback.add(self.inner.finish(local, steps=steps, learning_rate=learning_rate))

    def encoded(self, sent: Vector, arrived: Vector) -> None:
        self._feedback.update(sent, arrived)

    def keep(self, local: Vector) -> dict[str, npt.NDArray[np.float32]]:
        return {**self.inner.keep(local), **self._feedback.keep()}
