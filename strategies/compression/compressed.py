"""A linear method whose uploads go through a linear codec."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays, StrategyState
from strategies.client_round import ClientRound, WrappedRound
from strategies.compression.feedback import ErrorFeedback
from strategies.compression.linear import LinearCodec
from strategies.wrapper import LinearWrapper
from umbel.adapter import AdapterSpec, Vector

_NAME = "compressed"


class Compressed(LinearWrapper):
    """Sends S v in place of v; the server applies S^T to the mean.

    What leaves, and is clipped, noised and masked, is the short vector: 4 x width bytes in plain.

    Args:
        inner: a linear method with one pass.
        codec: :class:`SharedMask` or :class:`HadamardSketch`.
        error_feedback: add what earlier rounds lost (only through :meth:`begin`, which holds the site's memory); the
            server then uses the projection S^T S, otherwise the unbiased multiple of it.
    """

    def __init__(self, inner: AdapterStrategy, codec: LinearCodec, *, error_feedback: bool = False) -> None:
        super().__init__(inner, codec.name + ("-ef" if error_feedback else ""))
        self.codec, self.error_feedback = codec, error_feedback

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """One tensor of the codec's width."""
        inner = self.inner.upload_spec(spec, round_number)
        return AdapterSpec.from_shapes({_NAME: (self.codec.width(inner.size),)}, inner.lora)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """S times the inner upload, without error feedback."""
        return self.codec.compress(self.inner.upload(spec, local, received, round_number), round_number)

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Hands S^T of the mean to ``inner``, times the codec's gain unless clients feed errors back."""
        size = self.inner.upload_spec(spec, round_number).size
        expanded = self.codec.back(mean, size, round_number)
        if not self.error_feedback:
            expanded *= np.float32(self.codec.gain(size))
        return self.inner.step(spec, expanded, state, round_number)

    def around(self, inner: ClientRound, extras: Arrays, kept: Arrays) -> ClientRound:
        """The inner round, whose upload is compressed."""
        return _CompressedRound(self, inner, kept)


class _CompressedRound(WrappedRound):
    def __init__(self, strategy: Compressed, inner: ClientRound, kept: Arrays) -> None:
        super().__init__(strategy, inner)
        self._codec = strategy.codec
        self._feedback = ErrorFeedback(kept) if strategy.error_feedback else None
        self._size = 0

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        vector = self.inner.finish(local, steps=steps, learning_rate=learning_rate)
        if self._feedback is not None:
            vector = self._feedback.add(vector)
        self._size = vector.size
        small = self._codec.compress(vector, self.round_number)
        if self._feedback is not None:
            self._feedback.update(vector, self._codec.back(small, vector.size, self.round_number))
        return small

    def encoded(self, sent: Vector, arrived: Vector) -> None:
        if self._feedback is not None:
            lost = np.asarray(sent - arrived, dtype=np.float32)
            self._feedback.lose(self._codec.back(lost, self._size, self.round_number))

    def keep(self, local: Vector) -> dict[str, npt.NDArray[np.float32]]:
        kept = self.inner.keep(local)
        return {**kept, **self._feedback.keep()} if self._feedback is not None else kept
