"""Every way to tune: from ``lora.method`` to a :class:`~mllm.lora.TunedModel`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from mllm.bottleneck import Bottleneck, put_beside
from mllm.load import Base
from mllm.lora import BITS, TunedModel, attach_lora, seeded_uniform, target_sites
from mllm.soft import attach_soft_tokens
from umbel.adapter import AdapterSpec, LoraShape
from umbel.config.model import LoraConfig
from umbel.errors import ModelError

_SOFT = "soft_tokens"
_SOFT_SCALE = 0.02


@dataclass
class InjectedModel(TunedModel):
    """A base with an adapter that PEFT has no format for: bottlenecks or soft tokens. See :class:`TunedModel`.

    ``adapter_config.json`` then holds ``peft_type`` UMBEL and the options that :func:`attach` takes.
    """

    config: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0
    handles: list[Any] = field(default_factory=list)
    modules: list[tuple[Any, str]] = field(default_factory=list)

    def at_rank(self, rank: int) -> TunedModel:
        """Itself.

        Raises:
            ModelError: another rank was asked for: these adapters have no factors to cut.
        """
        if rank != self.spec.lora.rank:
            raise ModelError(
                f"An adapter of method {self.config.method} has no other rank: set strategy.ranks to same."
            )
        return self

    def detach(self) -> Base:
        """Takes hooks and modules off; this object is of no use after."""
        for handle in self.handles:
            handle.remove()
        for owner, name in self.modules:
            delattr(owner, name)
        self.handles, self.modules, self.parameters = [], [], {}
        return self.base

    def _config(self, lora: LoraShape) -> dict[str, Any]:
        return {
            "peft_type": "UMBEL",
            "base_model_name_or_path": self.base.source,
            "seed": self.seed,
            "options": self.config.model_dump(by_alias=True),
        }


def attach(base: Base, config: LoraConfig, *, seed: int) -> TunedModel:
    """Puts the adapter that ``config.method`` names on ``base``.

    LoRA, DoRA, IA3 and bottlenecks start equal to the base. Soft tokens cannot: a token that is there is attended to;
    they start at U(-0.02, 0.02), fixed by ``seed`` and their names.

    Raises:
        ModelError: as :func:`mllm.lora.attach_lora`, or the method does not fit the model.
    """
    if config.method in ("lora", "dora", "ia3"):
        return attach_lora(base, config, seed=seed)
    model = base.model
    if hasattr(model, _SOFT) or any(isinstance(module, Bottleneck) for module in model.modules()):
        raise ModelError("The base carries an adapter already: detach it before attaching another.")
    device = next(model.parameters()).device
    handles: list[Any] = []
    modules: list[tuple[Any, str]] = []
    shape = LoraShape(config.rank, config.alpha, config.rslora)
    if config.method == "adapter":
        for site in target_sites(model, config):
            made = Bottleneck(site.module.in_features, site.module.out_features, config.rank, shape.scaling)
            handles.append(put_beside(site.module, made.to(device)))
            modules.append((site.module, "adapter"))
    else:
        soft, handles = attach_soft_tokens(model, config.method, config.tokens)
        setattr(model, _SOFT, soft.to(device))
        modules.append((model, _SOFT))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in parameters.items():
        if not name.endswith(".up.weight"):
            bound = _SOFT_SCALE if name.startswith(_SOFT) else None
            parameter.data = seeded_uniform(name, tuple(parameter.shape), seed, bound).to(device)
        assert parameter.dtype == torch.float32
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    spec = AdapterSpec.from_shapes(shapes, shape)
    return InjectedModel(
        model,
        spec,
        parameters,
        base,
        BITS[config.quantization_aware],
        any_parameter=config.method != "adapter",
        config=config,
        seed=seed,
        handles=handles,
        modules=modules,
    )
