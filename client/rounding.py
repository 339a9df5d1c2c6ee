"""Quantization-aware training of the factors: every pass computes with rounded ones (LLM-QAT, Liu et al. 2023;
QSLAW, Xie et al. 2024), gradients pass straight through the rounding to exact master values.

The rounded values stand in the parameters themselves while a batch runs, so that the gradient at them *is* the
straight-through gradient of the masters, under every clipping engine alike: per example it depends on that example and
on parameters only, and the guarantee is untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from umbel.errors import ModelError

if TYPE_CHECKING:
    from mllm.lora import TunedModel


def fake_quantize(value: torch.Tensor, bits: int) -> torch.Tensor:
    """``value`` rounded to signed integers of ``bits`` with one scale a row (last dimension), and back.

    Symmetric, from the row's largest magnitude; a row of zeros stays. Values that are not finite spoil their row.

    Args:
        value: float32 [.., in].
        bits: 2 to 16.

    Raises:
        ModelError: another number of bits.
    """
    if not 2 <= bits <= 16:
        raise ModelError(f"Values cannot be rounded to {bits} bits: choose 2 to 16.")
    top = 2 ** (bits - 1) - 1
    scale = value.abs().amax(dim=-1, keepdim=True) / top
    return torch.where(scale > 0, (value / scale).round().clamp(-top, top) * scale, value)


class Rounding:
    """The factors of a model, exact or rounded."""

    def __init__(self, tuned: TunedModel) -> None:
        self._parameters = tuned.parameters
        self._bits = tuned.bits
        self._masters: dict[str, torch.Tensor] = {}

    def rounded(self) -> None:
        """Keeps the exact values aside and rounds; frozen factors too, for they are served rounded as well."""
        for name, parameter in self._parameters.items():
            self._masters[name] = parameter.detach().clone()
            parameter.data.copy_(fake_quantize(self._masters[name], self._bits))

    def exact(self) -> None:
        """Puts the exact values back; does nothing when they are there."""
        for name, master in self._masters.items():
            self._parameters[name].data.copy_(master)
        self._masters = {}


@contextmanager
def rounded(tuned: TunedModel) -> Iterator[Rounding | None]:
    """Rounds the factors inside the block, as ``tuned.bits`` says; exact values are back after it."""
    if not tuned.bits:
        yield None
        return
    rounding = Rounding(tuned)
    rounding.rounded()
    try:
        yield rounding
    finally:
        rounding.exact()
