"""Quantized linear layers: making one, reading its weight back, counting its bytes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from umbel.errors import QuantizationError


def quantized_linear(linear: nn.Linear, backend: str, device: torch.device, compute: torch.dtype) -> nn.Linear:
    """A frozen quantized copy of ``linear`` on ``device``.

    Args:
        linear: weight [out, in] in any floating dtype.
        backend: one of ``mllm.quantize.BACKENDS`` other than ``none``.
        device: where the copy lives.
        compute: dtype of its activations and bias.

    Raises:
        QuantizationError: the backend's library is missing or refuses the layer.
    """
    weight = linear.weight.detach().float()
    bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device, compute), requires_grad=False)
    outputs, inputs = weight.shape
    make = _torchao_int8 if backend == "int8-weight-only" else _int8 if backend == "int8" else _nf4
    try:
        made = make(weight, bias is not None, backend, device, compute)
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise QuantizationError(
            f"A linear layer of {inputs} x {outputs} cannot be stored as {backend!r} on {device} ({first}): choose "
            "another quantization."
        ) from None
    made.bias = bias
    result: nn.Linear = made
    return result


def dequantized_weight(linear: nn.Module) -> torch.Tensor:
    """The float32 weight [out, in] that a linear layer, quantized or not, stands for."""
    weight: Any = linear.weight
    if hasattr(weight, "quant_state"):
        import bitsandbytes as bnb

        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()  # type: ignore[no-any-return]
    if weight.dtype == torch.int8 and hasattr(weight, "SCB"):
        state: Any = getattr(linear, "state", None)
        scale = weight.SCB if weight.SCB is not None else state.SCB
        # LLM.int8 (Dettmers et al. 2022): the largest magnitude of a row stands for 127.
        return weight.data.float() * (scale.float() / 127).unsqueeze(1)  # type: ignore[no-any-return]
    if hasattr(weight, "qdata"):
        return weight.dequantize().float()  # type: ignore[no-any-return]
    return weight.detach().float()  # type: ignore[no-any-return]


def is_quantized(linear: nn.Module) -> bool:
    """Whether the layer's weight is really stored in 4 or 8 bits."""
    weight: Any = linear.weight
    if hasattr(weight, "quant_state"):
        return weight.quant_state is not None and weight.dtype == torch.uint8
    stored = weight.qdata if hasattr(weight, "qdata") else weight
    return bool(stored.dtype == torch.int8)


def weight_bytes(weight: Any) -> int:
    """Bytes of a weight in memory, with its scales."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        total = weight.data.nbytes + state.absmax.nbytes + state.code.nbytes
        if state.nested:
            total += state.state2.absmax.nbytes + state.state2.code.nbytes
        return int(total)
    if hasattr(weight, "qdata"):
        return int(weight.qdata.nbytes + weight.scale.nbytes)
    if weight.dtype == torch.int8:
        return int(weight.nbytes + 4 * weight.shape[0])  # one float32 scale a row
    return int(weight.nbytes)


def _torchao_int8(weight: torch.Tensor, bias: bool, backend: str, device: torch.device, compute: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, device="meta")
    made.weight = nn.Parameter(weight.to(device, compute), requires_grad=False)
    quantize_(made, Int8WeightOnlyConfig(set_inductor_config=False))
    made.weight.requires_grad_(False)
    return made


def _int8(weight: torch.Tensor, bias: bool, backend: str, device: torch.device, compute: torch.dtype) -> Any:
    import bitsandbytes as bnb

    made = _int8_class()(weight.shape[1], weight.shape[0], bias, has_fp16_weights=False, device="meta")
    made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    return made


def _nf4(weight: torch.Tensor, bias: bool, backend: str, device: torch.device, compute: torch.dtype) -> Any:
    import bitsandbytes as bnb

    double = backend == "nf4-double"
    made = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias, compute, double, "nf4", device="meta")
    made.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=made
    ).to(device)
    # On some CPUs bitsandbytes would repack weights for bfloat16 in passing: results would depend on the
    # machine and on which forward pass came first.
    made.support_avx512bf16_for_cpu = False
    return made


@cache
def _int8_class() -> type[Any]:
    import bitsandbytes as bnb

    class Linear8bit(bnb.nn.Linear8bitLt):  # type: ignore[misc]
        """bitsandbytes int8 that dequantizes on a CPU, whatever the mode.

        Outside training mode bitsandbytes also rounds activations to int8 and gradients to float16: 0.6% off
        the dequantized model, and another function in evaluation than in training. On a CPU that is slower too.
        """

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mode: bool = self.training
            self.training: bool = mode or x.device.type == "cpu"
            try:
                out: torch.Tensor = super().forward(x)
            finally:
                self.training = mode
            return out

    return Linear8bit
