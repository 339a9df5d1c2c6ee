"""What keeps a model from being trained in lanes, and the layers of one that can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from mllm.rows import FAMILIES
from simulations.batched.state import LaneSite

if TYPE_CHECKING:
    from mllm.lora import TunedModel

_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt", "TorchaoLoraLinear")
"""PEFT's LoRA layers whose forward is the base layer's plus scaling B A dropout(x)."""


def why_not(tuned: TunedModel) -> str:
    """Why clients of this model must be trained one by one; "" when lanes are exact.

    Asked before anything is trained: family, LoRA layers, other randomness and couplings between examples. Rows that
    turn out not to match are found when the first batch runs.
    """
    model = tuned.model
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in FAMILIES:
        return f"the rows of model family {family!r} cannot be matched to clients"
    if tuned.spec.others:
        return f"tensor {tuned.spec.others[0].name!r} is no LoRA factor"
    for pair in tuned.spec.pairs:
        reason = _unusual(model.get_submodule(pair.module))
        if reason:
            return f"layer {pair.module!r} {reason}"
    dropout = any(site.dropout for site in lane_sites(tuned))
    return _couplings(model) or (
        "dropout under gradient checkpointing is drawn again in the backward pass"
        if dropout and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        else ""
    )


def lane_sites(tuned: TunedModel) -> list[LaneSite]:
    """The adapted layers of a model that :func:`why_not` has nothing against."""
    sites = []
    for pair in tuned.spec.pairs:
        module = tuned.model.get_submodule(pair.module)
        (name,) = module.active_adapters
        dropout = module.lora_dropout[name]
        share = float(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0
        sites.append(LaneSite(pair.module, module, pair, float(module.scaling[name]), share))
    return sites


def _unusual(module: Any) -> str:
    if type(module).__name__ not in _LAYERS or not hasattr(module, "lora_A"):
        return f"is a {type(module).__name__}, whose adapter is more than B A x"
    if any((getattr(module, "lora_variant", None) or {}).values()) or any(
        (getattr(module, "use_dora", None) or {}).values()
    ):
        return "carries a LoRA variant"
    if getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return "has its adapter merged or switched off"
    active = list(module.active_adapters)
    if len(active) != 1 or active[0] not in module.lora_A:
        return f"has {len(active)} active adapters"
    if any(getattr(module.lora_B[active[0]], "bias", None) is not None for _ in (0,)):
        return "has a bias in its adapter"
    return ""


def _couplings(model: nn.Module) -> str:
    inside = {id(m) for _, m in model.named_modules() if hasattr(m, "lora_dropout") for m in m.lora_dropout.modules()}
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"layer {path!r} normalises over the batch"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 and id(module) not in inside:
            return f"layer {path!r} drops values of the frozen base"
    for name, value in _options(getattr(model, "config", None)):
        if ("drop" in name and isinstance(value, float) and value > 0) or (name == "num_experts" and value):
            return f"the base's option {name} is {value}"
    return ""


def _options(config: Any) -> Iterator[tuple[str, Any]]:
    """Every option of a configuration and of those inside it."""
    for name, value in vars(config).items() if config is not None else ():
        if hasattr(value, "to_dict"):
            yield from _options(value)
        else:
            yield name, value
