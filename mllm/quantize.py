"""Storing the linear layers of a frozen base in 4 or 8 bits, and proving that it happened.

Done module by module on full paths: lists of names to skip, as loaders take them, fail silently when a
name does not match. Gradients through a quantized layer must equal those through its dequantized weight
(QLoRA, Dettmers et al. 2023, section 3); a sample of layers is checked at every load.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from mllm.backends import dequantized_weight, is_quantized, quantized_linear, weight_bytes
from mllm.parts import PARTS, LinearSite, linear_sites
from mllm.report import ExemptModule, QuantizationReport, QuantizedModule
from umbel.config.model import REFUSED_BACKENDS
from umbel.errors import ModelError, QuantizationError

BACKENDS = ("nf4", "nf4-double", "int8", "int8-weight-only", "none")
"""bitsandbytes NF4 without and with double quantization, bitsandbytes int8, torchao int8, no quantization."""

_TOLERANCE = 0.02
Prepare = Callable[[LinearSite, str], torch.Tensor]
"""From a layer and its backend to the float32 weight [out, in] that is stored in place of its own."""


def quantize(
    model: Any,
    backend: str,
    device: torch.device,
    compute: torch.dtype,
    *,
    asked: str = "",
    keep: Collection[str] = (),
    parts: Mapping[str, str] | None = None,
    prepare: Prepare | None = None,
) -> QuantizationReport:
    """Quantizes the transformer linears of language model and vision tower in place and moves ``model``.

    Args:
        model: on the CPU, as the checkpoint stores it.
        backend: one of :data:`BACKENDS`.
        device: where the result lives.
        compute: dtype of activations and of all that is not quantized.
        asked: for the report, what the user wrote.
        keep: parts (``vision``) that stay as they are, besides the projector.
        parts: backend of parts that are stored otherwise than ``backend``; the only way to quantize a projector.
        prepare: what is stored in a layer's place, for calibration; its own weight by default.

    Raises:
        QuantizationError: the backend is unknown, cannot be used here or has wrong gradients; there is nothing
            to quantize; or a layer is not quantized afterwards.
        ModelError: ``keep`` names no part.
    """
    chosen = {part: "none" if part == "projector" or part in keep else backend for part in PARTS} | dict(parts or {})
    for one in (backend, *chosen.values()):
        check_backend(one)
    unknown = sorted((set(keep) | set(chosen)) - set(PARTS))
    if unknown:
        raise ModelError(f"Part {unknown[0]!r} is unknown: choose from {', '.join(PARTS)}.")
    before = _bytes(model)
    planned: list[LinearSite] = []
    exempt: dict[str, str] = {}
    for site in linear_sites(model):
        reason = site.exempt or _kept(site, chosen, keep, backend)
        if reason:
            exempt[site.path] = reason
        else:
            planned.append(site)
    wanted = sorted({backend, *chosen.values()} - {"none"})
    idle = sorted(
        part for part, one in (parts or {}).items() if one != "none" and not any(s.part == part for s in planned)
    )
    if idle:
        raise QuantizationError(
            f"The {idle[0]} part was to be stored as {chosen[idle[0]]!r}, but it has no linear layer: leave it out of "
            "model.quantization-parts."
        )
    if wanted and not planned:
        raise QuantizationError(
            f"Quantization {wanted[0]!r} was asked for, but {type(model).__name__} has no linear layer to quantize: "
            "use 'none' or keep fewer parts."
        )
    sizes = {site.path: weight_bytes(site.module.weight) for site in planned}
    errors: dict[str, float] = {}
    for site in planned:
        parent, _, name = site.path.rpartition(".")
        made = quantized_linear(_prepared(site, chosen[site.part], prepare), chosen[site.part], device, compute)
        errors[site.path] = weight_error(site.module.weight, dequantized_weight(made))
        setattr(model.get_submodule(parent), name, made)
    _move_rest(model, {site.path for site in planned}, device, compute)
    model.requires_grad_(False)
    model.eval()
    # PEFT chooses its LoRA layer by these flags, which transformers' own loader would have set.
    used = {chosen[site.part] for site in planned}
    if used & {"nf4", "nf4-double"}:
        model.is_loaded_in_4bit = True
    if "int8" in used:
        model.is_loaded_in_8bit = True
    _verify(model, planned, chosen, device, compute)
    return QuantizationReport(
        asked=asked or backend,
        backend=backend,
        device=str(device),
        compute=str(compute).removeprefix("torch."),
        modules=tuple(
            QuantizedModule(
                s.path,
                s.part,
                sizes[s.path],
                weight_bytes(model.get_submodule(s.path).weight),
                chosen[s.part],
                errors[s.path],
            )
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
    why = REFUSED_BACKENDS.get(backend, "it is unknown")
    raise QuantizationError(f"Quantization {backend!r} cannot be used ({why}): choose auto, {', '.join(BACKENDS)}.")


def weight_error(weight: torch.Tensor, stored: torch.Tensor) -> float:
    """|stored - weight| / |weight| in the Frobenius norm, both in float32; 0 for a weight of zeros stored exactly."""
    exact = weight.detach().float().to(stored.device)
    difference = float(torch.linalg.vector_norm(stored.float() - exact))
    return difference / max(float(torch.linalg.vector_norm(exact)), 1e-30) if difference else 0.0


def _prepared(site: LinearSite, backend: str, prepare: Prepare | None) -> nn.Linear:
    if prepare is None:
        return site.module
    made = nn.Linear(site.module.in_features, site.module.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(prepare(site, backend), requires_grad=False)
    made.bias = site.module.bias
    return made


def _kept(site: LinearSite, chosen: Mapping[str, str], keep: Collection[str], backend: str) -> str:
    if chosen[site.part] != "none":
        return ""
    if site.part in keep or (backend != "none" and site.part != "projector"):
        return f"{site.part} is kept"
    return "no quantization asked for" if backend == "none" else "projector"


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
    model: nn.Module,
    planned: list[LinearSite],
    chosen: Mapping[str, str],
    device: torch.device,
    compute: torch.dtype,
) -> None:
    checked: set[tuple[Any, ...]] = set()
    for site in planned:
        module, backend = model.get_submodule(site.path), chosen[site.part]
        if not is_quantized(module):
            raise QuantizationError(
                f"Module {site.path} is not quantized though {backend!r} was asked for: choose another quantization or "
                "report the layer's type, " + type(module).__name__ + "."
            )
        weight = dequantized_weight(module)
        if (backend, *weight.shape) not in checked:
            checked.add((backend, *weight.shape))
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
