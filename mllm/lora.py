"""LoRA factors on a frozen base, through PEFT, and the flat vector they travel as (Hu et al. 2021)."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from mllm.load import Base
from mllm.parts import PARTS, LinearSite, linear_sites, suffixes
from mllm.quiet import quiet
from mllm.side import SideHooks
from umbel.adapter import AdapterSpec, LoraShape, Vector
from umbel.config.model import LoraConfig
from umbel.errors import ModelError
from umbel.files import write_atomic
from umbel.side import SideTerm, fold_side

with quiet():
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

_ADAPTER = "default"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass
class _Shared:
    """What one model's adapters of different ranks share: which of them is in it, and the side terms."""

    ranks: dict[int, TunedModel] = field(default_factory=dict)
    installed: int = 0
    side: SideHooks = field(default_factory=SideHooks)


@dataclass
class TunedModel:
    """A base with trainable LoRA factors.

    The model computes with what was loaded last: factors of this rank or, through :meth:`at_rank`, of another, and
    the side terms that came with them.

    Attributes:
        model: the PEFT model; only its LoRA factors require a gradient.
        spec: names, as in PEFT's ``adapter_model.safetensors``, shapes and order of the factors.
        parameters: the float32 factors by those names, in that order.
        base: what it stands on; shared, and whole again after :meth:`detach`.
    """

    model: Any
    spec: AdapterSpec
    parameters: dict[str, torch.nn.Parameter]
    base: Base
    _shared: _Shared = field(default_factory=_Shared, repr=False)

    def __post_init__(self) -> None:
        self._shared.ranks[self.spec.lora.rank] = self
        self._shared.installed = self._shared.installed or self.spec.lora.rank

    def at_rank(self, rank: int) -> TunedModel:
        """The same model with factors of another rank (alpha stays, so the scale follows the rank).

        Each rank has parameters of its own, made once; :meth:`load` puts them into the model.

        Raises:
            AdapterError: the rank is not positive.
        """
        if rank not in self._shared.ranks:
            spec = self.spec.with_rank(rank)
            device = next(iter(self.parameters.values())).device
            parameters = {t.name: torch.nn.Parameter(torch.zeros(t.shape, device=device)) for t in spec}
            TunedModel(self.model, spec, parameters, self.base, self._shared)
        return self._shared.ranks[rank]

    def _install(self) -> None:
        rank = self.spec.lora.rank
        if self._shared.installed == rank:
            return
        for pair in self.spec.pairs:
            layer = self.model.get_submodule(pair.module)
            down, up = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
            down.weight, up.weight = self.parameters[pair.a.name], self.parameters[pair.b.name]
            down.out_features = up.in_features = rank
            layer.r[_ADAPTER], layer.scaling[_ADAPTER] = rank, self.spec.lora.scaling
        self._shared.installed = rank

    def vector(self) -> Vector:
        """A new flat copy of the factors."""
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters.values()])
        return np.array(flat.cpu().numpy(), dtype=np.float32)

    def load(self, vector: Vector, side: Mapping[str, SideTerm] | None = None) -> None:
        """Copies ``vector`` into the factors; modules, optimizer references and the base stay.

        Values are not looked at: :meth:`AdapterSpec.check` refuses those that are not finite.

        Args:
            vector: the factors.
            side: corrections of frozen weights by module, which replace those loaded before; none by default.

        Raises:
            AdapterError: length or dtype do not fit the spec, or a side term does not fit its layer.
        """
        self.spec.check_length(vector)
        self._install()
        self._shared.side.replace(self.model, self.spec, side or {})
        parameters = list(self.parameters.values())
        # A vector that came from the wire may be read-only, which torch would warn about.
        flat = torch.from_numpy(vector if vector.flags.writeable else vector.copy())
        pieces = torch.split(flat.to(parameters[0].device), [parameter.numel() for parameter in parameters])
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))

    def save(
        self, directory: str | Path, vector: Vector | None = None, side: Mapping[str, SideTerm] | None = None
    ) -> None:
        """Writes a PEFT adapter directory, the factors as they are or those of ``vector``.

        Side terms become additional ranks of the same adapter (:func:`umbel.side.fold_side`), which PEFT knows
        nothing about and need not.

        Raises:
            AdapterError: ``vector`` or a side term does not fit the spec or is not finite.
            RunError: the directory cannot be written.
        """
        values = self.vector() if vector is None else vector
        self.spec.check(values)
        spec, values = fold_side(self.spec, values, side or {})
        tensors = {name: np.ascontiguousarray(view) for name, view in spec.views(values).items()}
        target = Path(directory)
        write_atomic(target / WEIGHTS_FILE, safetensors.numpy.save(tensors, {"format": "pt"}))
        config = json.dumps(self._config(spec.lora), indent=2, sort_keys=True) + "\n"
        write_atomic(target / CONFIG_FILE, config.encode())

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass; works in training mode (``model.train()``) only.

        The embeddings' output is made to require a gradient, without which the first block would be skipped.
        """
        self.model.enable_input_require_grads()
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def detach(self) -> Base:
        """Takes the factors off; the warm base can then carry another adapter. This object is of no use after."""
        self._shared.side.clear()
        self.model.unload()
        self.parameters = {}
        if hasattr(self.base.model, "peft_config"):
            del self.base.model.peft_config
        return self.base

    def _config(self, lora: LoraShape) -> dict[str, Any]:
        body: dict[str, Any] = dict(self.model.peft_config[_ADAPTER].to_dict())
        kind = type(self.base.model)
        body |= {
            "base_model_name_or_path": self.base.source,
            "inference_mode": True,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        }
        # Sets come in an order that changes from process to process.
        return {key: sorted(value) if isinstance(value, set) else value for key, value in body.items()}


def attach_lora(base: Base, config: LoraConfig, *, seed: int) -> TunedModel:
    """Puts LoRA factors on the chosen linears of ``base``.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) by a generator of its own for every tensor, keyed by ``seed`` and
    the tensor's name; B is zero, so the tuned model starts equal to its base. The same seed gives the same bits
    in every process; the global generators are left as they were.

    Args:
        base: a base that carries no adapter.
        config: rank, scale, dropout and where the factors sit.
        seed: any integer.

    Raises:
        ModelError: a part or a module name matches nothing, or the base carries an adapter already.
    """
    if any(isinstance(module, BaseTunerLayer) for module in base.model.modules()):
        raise ModelError("The base carries an adapter already: detach it before attaching another.")
    sites = target_sites(base.model, config)
    paths = [site.path for site in sites]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT warns that merging into torchao weights is not possible; nothing is merged here.
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
        model = peft.get_peft_model(base.model, _peft_config(config, paths), adapter_name=_ADAPTER)
    parameters = {
        name.replace(f".{_ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    expected = {f"base_model.model.{path}.lora_{factor}.weight" for path in paths for factor in "AB"}
    if set(parameters) != expected:
        odd = sorted(set(parameters) ^ expected)[0]
        model.unload()
        raise ModelError(
            f"Trainable parameters and LoRA targets differ (first {odd}): name modules that PEFT adapts one by one."
        )
    for name, parameter in parameters.items():
        parameter.data = _initial(name, tuple(parameter.shape), seed).to(parameter.device)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    spec = AdapterSpec.from_shapes(shapes, LoraShape(config.rank, config.alpha, config.rslora))
    return TunedModel(model, spec, parameters, base)


def target_sites(model: Any, config: LoraConfig) -> list[LinearSite]:
    """The linears that ``config`` names, in module order.

    Raises:
        ModelError: an unknown part, or a part or a module name that matches nothing.
    """
    parts = [part.strip() for part in config.targets.split(",") if part.strip()]
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ModelError(
            f"lora.targets {config.targets!r} names no part of the model: choose from {', '.join(PARTS)}, separated by "
            "commas."
        )
    usable = [site for site in linear_sites(model) if not site.exempt]
    chosen = []
    for part in parts:
        inside = [site for site in usable if site.part == part]
        if not inside:
            has = ", ".join(p for p in PARTS if any(site.part == p for site in usable))
            raise ModelError(
                f"lora.targets names {part!r}, but that part of the model has no linear layer: choose from {has}."
            )
        chosen += inside
    if config.modules.strip() != "auto":
        names = [name.strip() for name in config.modules.split(",") if name.strip()]
        for name in names or [config.modules]:
            if not any(_ends_with(site.path, name) for site in chosen):
                raise ModelError(
                    f"lora.modules names {name!r}, which {' and '.join(parts)} do not have: choose from "
                    f"{', '.join(suffixes(chosen))}, or auto."
                )
        chosen = [site for site in chosen if any(_ends_with(site.path, name) for name in names)]
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    return sorted({site.path: site for site in chosen}.values(), key=lambda site: order[site.path])


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def _peft_config(config: LoraConfig, paths: list[str]) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=paths,
        bias="none",
    )


def _initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if name.endswith(".lora_B.weight"):
        return torch.zeros(shape)
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    bound = 1 / math.sqrt(shape[1])
    return torch.rand(shape, generator=generator) * (2 * bound) - bound
