"""Storing the linear layers of a frozen base in 4 or 8 bits, and proving that it happened.

Done module by module on full paths: lists of names to skip, as loaders take them, fail silently when a
name does not match. Gradients through a quantized layer must equal those through its dequantized weight
(QLoRA, Dettmers et al. 2023, section 3); a sample of layers is checked at every load.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from mllm.backends import dequantized_weight, is_quantized, quantized_linear, weight_bytes
from mllm.parts import PARTS, LinearSite, linear_sites
from mllm.report import ExemptModule, QuantizationReport, QuantizedModule
from umbel.errors import ModelError, QuantizationError

BACKENDS = ("nf4", "nf4-double", "int8", "int8-weight-only", "none")
"""bitsandbytes NF4 without and with double quantization, bitsandbytes int8, torchao int8, no quantization."""

_REFUSED = {
    "int8-dynamic": "torchao's dynamic int8 activations give silently wrong gradients",
    "int4-weight-only": "torchao's int4 layout has no gradient",
    "hqq": "HQQ layers of transformers cannot be trained through",
}
_TOLERANCE = 0.02


def quantize(
    model: Any, backend: str, device: torch.device, compute: torch.dtype, *, asked: str = "", keep: Collection[str] = ()
) -> QuantizationReport:
    """Quantizes the transformer linears of language model and vision tower in place and moves ``model``.

    Args:
        model: on the CPU, as the checkpoint stores it.
        backend: one of :data:`BACKENDS`.
        device: where the result lives.
        compute: dtype of activations and of all that is not quantized.
        asked: for the report, what the user wrote.
        keep: parts (``vision``) that stay as they are, besides the projector.

    Raises:
        QuantizationError: the backend is unknown, cannot be used here or has wrong gradients; there is nothing
            to quantize; or a layer is not quantized afterwards.
        ModelError: ``keep`` names no part.
    """
    check_backend(backend)
    unknown = sorted(set(keep) - set(PARTS))
    if unknown:
        raise ModelError(f"Part {unknown[0]!r} is unknown: choose from {', '.join(PARTS)}.")
    before = _bytes(model)
    planned: list[LinearSite] = []
    exempt: dict[str, str] = {}
    for site in linear_sites(model):
        reason = site.exempt or _kept(site, keep)
        if backend == "none":
            reason = "no quantization asked for"
        if reason:
            exempt[site.path] = reason
        else:
            planned.append(site)
    if backend != "none" and not planned:
        raise QuantizationError(
            f"Quantization {backend!r} was asked for, but {type(model).__name__} has no linear layer to quantize: "
            "use 'none' or keep fewer parts."
        )
    sizes = {site.path: weight_bytes(site.module.weight) for site in planned}
    for site in planned:
        parent, _, name = site.path.rpartition(".")
        setattr(model.get_submodule(parent), name, quantized_linear(site.module, backend, device, compute))
    _move_rest(model, {site.path for site in planned}, device, compute)
    model.requires_grad_(False)
    model.eval()
    # PEFT chooses its LoRA layer by these flags, which transformers' own loader would have set.
    if backend.startswith("nf4"):
        model.is_loaded_in_4bit = True
    elif backend == "int8":
        model.is_loaded_in_8bit = True
    _verify(model, planned, backend, device, compute)
    return QuantizationReport(
        asked=asked or backend,
        backend=backend,
        device=str(device),
        compute=str(compute).removeprefix("torch."),
        modules=tuple(
            QuantizedModule(s.path, s.part, sizes[s.path], weight_bytes(model.get_submodule(s.path).weight))
            for s in planned
        ),
        exempt=tuple(_others(model, {s.path for s in planned}, exempt)),
        bytes_before=before,
        bytes_after=_bytes(model),
    )


def check_backend(backend: str) -> None:
    """Raises QuantizationError unless ``backend`` is one of :data:`BACKENDS`."""
    if backend in BACKENDS:
        return
    why = _REFUSED.get(backend, "it is unknown")
    raise QuantizationError(f"Quantization {backend!r} cannot be used ({why}): choose auto, {', '.join(BACKENDS)}.")


def _kept(site: LinearSite, keep: Collection[str]) -> str:
    if site.part == "projector":
        return "projector"
    return f"{site.part} is kept" if site.part in keep else ""


def _others(model: nn.Module, planned: set[str], reasons: dict[str, str]) -> list[ExemptModule]:
    found = []
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if path in planned or not isinstance(weight, torch.Tensor) or weight.ndim < 2:
            continue
        kind = "embedding" if isinstance(module, nn.Embedding) else f"not a linear layer ({type(module).__name__})"
        if isinstance(module, nn.Linear):
            kind = reasons.get(path, "outside the parts that are quantized")
        found.append(ExemptModule(path, kind, weight_bytes(weight)))
    return found


def _move_rest(model: nn.Module, planned: set[str], device: torch.device, compute: torch.dtype) -> None:
    for path, module in model.named_modules():
        if path in planned:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            dtype = compute if parameter.is_floating_point() else parameter.dtype
            getattr(module, name).data = parameter.data.to(device, dtype)
        for name, buffer in module.named_buffers(recurse=False):
            # Rotary frequencies and the like stay in float32 under bfloat16: positions would lose precision.
            widen = buffer.is_floating_point() and compute == torch.float32
            setattr(module, name, buffer.to(device, torch.float32 if widen else buffer.dtype))


def _verify(
    model: nn.Module, planned: list[LinearSite], backend: str, device: torch.device, compute: torch.dtype
) -> None:
    checked: set[tuple[int, ...]] = set()
    for site in planned:
        module = model.get_submodule(site.path)
        if not is_quantized(module):
            raise QuantizationError(
                f"Module {site.path} is not quantized though {backend!r} was asked for: choose another quantization or "
                "report the layer's type, " + type(module).__name__ + "."
            )
        weight = dequantized_weight(module)
        if tuple(weight.shape) not in checked:
            checked.add(tuple(weight.shape))
            _check_gradient(site.path, module, weight, backend, device, compute)


def _check_gradient(
    path: str, module: nn.Module, weight: torch.Tensor, backend: str, device: torch.device, compute: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = weight.shape
    x = torch.randn(4, inputs, generator=generator).to(device, compute).requires_grad_()
    upstream = torch.randn(4, outputs, generator=generator).to(device, compute)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(module(x), x, upstream)
    expected = upstream.float() @ weight
    error = float((gradient.float() - expected).norm() / expected.norm().clamp(min=1e-30))
    if not error <= _TOLERANCE:
        raise QuantizationError(
            f"The gradient through {path} as {backend!r} is off by {error:.1%} of its dequantized weight's: choose "
            "another quantization."
        )


def _bytes(model: nn.Module) -> int:
    return sum(weight_bytes(parameter) for parameter in model.parameters())
