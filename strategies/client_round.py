"""The client half of one round as an object, with the hooks that a trainer calls.

::

    client = strategy.begin(spec, received, round, extras, kept)   # kept: what keep() gave last time
    model <- client.start;  train client.trainable, and at every step
        client.gradient(gradients, parameters)      # after clipping and noise, before the optimizer
        optimizer.step()
        client.after_step(parameters)
    send client.finish(local, steps=.., learning_rate=..)
    client.encoded(sent, arrived)                   # only where the upload was quantized for the wire
    store client.keep(local)

Under differential privacy the hooks see gradients that are already noised, so they are post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from umbel.adapter import AdapterSpec, Vector

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy

Views = Mapping[str, npt.NDArray[np.float32]]
"""Float32 arrays by tensor name that may be written in place (``AdapterSpec.views``, or ``tensor.numpy()``)."""


class ClientRound:
    """One client's round without any hook; regularisers derive from it and pass on to the round they wrap.

    Attributes:
        spec: the client's own spec.
        start: the vector that the model loads before training.
        round_number: 1-based.
    """

    def __init__(self, strategy: AdapterStrategy, spec: AdapterSpec, start: Vector, round_number: int) -> None:
        self._strategy = strategy
        self.spec = spec
        self.start = start
        self.round_number = round_number

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the tensors to train."""
        return self._strategy.trainable(self.spec, self.round_number)

    @property
    def hooked(self) -> bool:
        """Whether :meth:`gradient` or :meth:`after_step` does anything; a trainer may skip them otherwise."""
        return False

    def gradient(self, gradient: Views, parameters: Views) -> None:
        """Changes the gradients of the tensors in ``gradient`` in place. Default: nothing."""

    def after_step(self, parameters: Views) -> None:
        """Changes the parameters in place after the optimizer's step. Default: nothing."""

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        """The upload, in the layout of the strategy's ``upload_spec``.

        Args:
            local: the adapter after training.
            steps: optimizer steps taken.
            learning_rate: of those steps.
        """
        return self._strategy.upload(self.spec, local, self.start, self.round_number)

    def encoded(self, sent: Vector, arrived: Vector) -> None:
        """Hears what quantization made of the upload, before :meth:`keep`. Default: nothing.

        Args:
            sent: the upload, clipped and noised where the plan says so.
            arrived: what the coordinator decodes.
        """

    def keep(self, local: Vector) -> dict[str, npt.NDArray[np.float32]]:
        """What the site must store for its next round, after :meth:`finish`; never sent."""
        return self._strategy.keep(self.spec, local, self.round_number)


class WrappedRound(ClientRound):
    """A round that passes every call on to ``inner``; subclasses add to some of them."""

    def __init__(self, strategy: AdapterStrategy, inner: ClientRound) -> None:
        super().__init__(strategy, inner.spec, inner.start, inner.round_number)
        self.inner = inner

    @property
    def hooked(self) -> bool:
        """As the wrapped round."""
        return self.inner.hooked

    def gradient(self, gradient: Views, parameters: Views) -> None:
        """As the wrapped round."""
        self.inner.gradient(gradient, parameters)

    def after_step(self, parameters: Views) -> None:
        """As the wrapped round."""
        self.inner.after_step(parameters)

    def finish(self, local: Vector, *, steps: int, learning_rate: float) -> Vector:
        """As the wrapped round."""
        return self.inner.finish(local, steps=steps, learning_rate=learning_rate)

    def keep(self, local: Vector) -> dict[str, npt.NDArray[np.float32]]:
        """As the wrapped round."""
        return self.inner.keep(local)
