"""Which trainable parameters the engines know, and where in the model they act.

An engine that does not know a parameter miscounts its part of the norm without any sign (DoRA by a tenth, LoRA on
embeddings by more than half in our measurements). So every trainable parameter must be claimed before the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from umbel.errors import PrivacyError, UnclaimedParameter


class Kind(Enum):
    """The layers whose per-example gradient is known in closed form."""

    LINEAR = "linear"
    LAYER_NORM = "layer norm"
    RMS_NORM = "RMS norm"


@dataclass(frozen=True, eq=False)
class Claim:
    """One layer with at least one trainable parameter.

    Attributes:
        path: dotted path of the layer in the model.
        module: the layer.
        kind: how its per-example gradient is made.
        weight: the caller's name of its trainable weight, or None.
        bias: the caller's name of its trainable bias, or None.
        eps: of an RMS norm; 0 otherwise.
    """

    path: str
    module: nn.Module
    kind: Kind
    weight: str | None
    bias: str | None
    eps: float = 0.0


def claim(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> tuple[Claim, ...]:
    """Claims every trainable parameter for a layer kind, or refuses.

    Args:
        model: the whole model; its frozen part is not looked at.
        trainable: the trainable parameters by the caller's names; exactly those of the model that require gradients.

    Returns:
        One claim a layer, in the order of the model.

    Raises:
        UnclaimedParameter: a parameter belongs to no plain linear or norm layer, is shared with another kind of
            layer, belongs to a LoRA variant with further terms (DoRA and its relatives), or is trained by the model but
            not listed. The message names it.
        PrivacyError: a listed parameter is frozen or not float32 or foreign to the model.
    """
    names = check_listed(model, trainable)
    variants = tuple(_variant_paths(model))
    claims: list[Claim] = []
    claimed: set[int] = set()
    for path, module in model.named_modules():
        own = {key: names[id(p)] for key, p in module._parameters.items() if p is not None and id(p) in names}
        if not own:
            continue
        first = next(iter(own.values()))
        variant = next((v for v in variants if path.startswith(v + ".")), None)
        kind, eps = _kind(module)
        if kind is None or set(own) - {"weight", "bias"} or variant is not None:
            what = f"a LoRA variant ({variant})" if variant is not None else type(module).__name__
            raise UnclaimedParameter(
                f"Trainable parameter {first!r} belongs to {what}, whose per-example gradient is not known: train only "
                "plain LoRA factors, linear layers and norms."
            )
        claims.append(Claim(path, module, kind, own.get("weight"), own.get("bias"), eps))
        claimed.update(id(module._parameters[key]) for key in own)
    unclaimed = next((name for name, p in trainable.items() if id(p) not in claimed), None)
    if unclaimed is not None:
        raise UnclaimedParameter(
            f"Trainable parameter {unclaimed!r} is part of no layer of the model: pass the model that is trained."
        )
    return tuple(claims)


def check_listed(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[int, str]:
    """Names by parameter identity, when ``trainable`` is exactly what the model trains.

    Raises:
        UnclaimedParameter, PrivacyError: as :func:`claim`.
    """
    if not trainable:
        raise PrivacyError("No trainable parameter was given: attach LoRA factors to the model first.")
    names = {id(p): name for name, p in trainable.items()}
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in names:
            raise UnclaimedParameter(
                f"Parameter {name!r} requires a gradient but is not listed as trainable: freeze it or list it."
            )
    for name, p in trainable.items():
        if not p.requires_grad:
            raise PrivacyError(f"Trainable parameter {name!r} is frozen: leave it out or let it require a gradient.")
        if p.dtype != torch.float32:
            raise PrivacyError(
                f"Trainable parameter {name!r} is {p.dtype}, expected float32: lower precision breaks the norm bound."
            )
    return names


def check_norm(clipping_norm: float) -> float:
    """The clipping norm, if it bounds anything.

    Raises:
        PrivacyError: not positive, infinite or NaN.
    """
    if not 0 < clipping_norm < float("inf"):
        raise PrivacyError(f"Clipping norm {clipping_norm} bounds nothing: expected a positive finite number.")
    return float(clipping_norm)


def check_batch_norm(model: nn.Module) -> None:
    """Refuses batch statistics, which couple the examples of a batch.

    Raises:
        PrivacyError: a BatchNorm layer is in training mode.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise PrivacyError(
                f"Layer {path!r} normalises by statistics of the batch, which couples examples: put it in eval mode."
            )


def _variant_paths(model: nn.Module) -> Iterator[str]:
    """LoRA layers whose forward is more than B A x, or whose factors are used other than by a call."""
    for path, module in model.named_modules():
        extended = any(bool(v) for v in (getattr(module, "lora_variant", None) or {}).values()) or any(
            (getattr(module, "use_dora", None) or {}).values()
        )
        if path and (extended or type(module).__name__ == "ParamWrapper"):
            yield path


def _kind(module: nn.Module) -> tuple[Kind | None, float]:
    if type(module) is nn.Linear:
        return Kind.LINEAR, 0.0
    if type(module) is nn.LayerNorm:
        return Kind.LAYER_NORM, 0.0
    if type(module).__name__.endswith("RMSNorm"):
        return _probe_rms(module)
    return None, 0.0


def _probe_rms(module: nn.Module) -> tuple[Kind | None, float]:
    """Claims an RMS norm of any library when it computes weight * x / rms(x), tried on random numbers.

    Some families scale by 1 + weight or normalise groups; those differ and stay unclaimed.
    """
    weight = module._parameters.get("weight")
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    if weight is None or weight.ndim != 1 or not isinstance(eps, float) or len(module._parameters) != 1:
        return None, 0.0
    twin = copy.deepcopy(module).to("cpu").eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, weight.shape[0], generator=generator)
    with torch.no_grad():
        twin._parameters["weight"] = nn.Parameter(torch.randn(weight.shape, generator=generator))
        expected = rms_norm(x, (weight.shape[0],), None, eps) * _as_tensor(twin._parameters["weight"])
        try:
            same = torch.allclose(twin(x), expected, rtol=1e-5, atol=1e-6)
        except (RuntimeError, TypeError, ValueError):
            same = False
    return (Kind.RMS_NORM, eps) if same else (None, 0.0)


def _as_tensor(parameter: nn.Parameter | None) -> Tensor:
    assert parameter is not None
    return parameter
