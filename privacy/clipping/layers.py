"""Layers that hand their input and output gradient to a book instead of making a weight gradient.

Each is an autograd function put in the place of the layer's own ``forward`` for the length of one step. What is
recorded is recorded in the *backward* pass, so a forward that runs twice under gradient checkpointing (either
``use_reentrant``) is counted once, and a layer that is used twice is counted twice. The weight itself receives no
gradient: whatever gradient does reach it came from a use that no book saw, and the engine refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear, rms_norm

from privacy.clipping.claims import Claim, Kind

Record = Callable[[Tensor, Tensor], None]
"""Takes the input [rows, ..., in] and the gradient of the output [rows, ..., out]."""


class BookedLinear(torch.autograd.Function):
    """y = x W^T + b with the gradients of W and b left to a book."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, record: Record) -> Tensor:
        """The layer itself, in whatever dtype autocast chooses."""
        ctx.save_for_backward(x, weight)
        ctx.record = record
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Hands (x, g) to the book; the gradient of x is g W."""
        x, weight = ctx.saved_tensors
        ctx.record(x, g)
        gx = (g @ weight.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return gx, None, None, None


class BookedAffine(torch.autograd.Function):
    """y = z * w + b, elementwise over the last dimension, with the gradients of w and b left to a book."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor | None, bias: Tensor | None, record: Record) -> Tensor:
        """The affine half of a norm layer."""
        ctx.save_for_backward(z, weight)
        ctx.record = record
        y = z if weight is None else z * weight
        return y + bias if bias is not None else y.clone() if weight is None else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Hands (z, g) to the book; the gradient of z is g * w."""
        z, weight = ctx.saved_tensors
        ctx.record(z, g)
        gz = None
        if ctx.needs_input_grad[0]:
            gz = (g if weight is None else g * weight).to(z.dtype)
        return gz, None, None, None


def booked_forward(claim: Claim, record: Record) -> Callable[[Tensor], Tensor]:
    """A ``forward`` for the claimed layer that computes the same and feeds ``record`` in the backward pass."""
    module = claim.module
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")

    def of_linear(input: Tensor) -> Tensor:
        y: Tensor = BookedLinear.apply(input, weight, bias, record)  # type: ignore[no-untyped-call]
        return y

    def of_layer_norm(input: Tensor) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        z = layer_norm(input, module.normalized_shape, None, None, module.eps)
        y: Tensor = BookedAffine.apply(z, weight, bias, record)  # type: ignore[no-untyped-call]
        return y

    def of_rms_norm(x: Tensor) -> Tensor:
        z = rms_norm(x.float(), (x.shape[-1],), None, claim.eps).to(x.dtype)
        y: Tensor = BookedAffine.apply(z, weight, None, record)  # type: ignore[no-untyped-call]
        return y

    return {Kind.LINEAR: of_linear, Kind.LAYER_NORM: of_layer_norm, Kind.RMS_NORM: of_rms_norm}[claim.kind]
