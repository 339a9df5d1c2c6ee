"""LoRA factors, DoRA and IA3 on a frozen base, through PEFT, and the flat vector they travel as (Hu et al. 2021)."""

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
        bits: of the fake quantization that training applies to the factors (``lora.quantization-aware``); 0 is none.
        any_parameter: some parameters act outside plain layers, so only the loop engine knows their gradients.
    """

    model: Any
    spec: AdapterSpec
    parameters: dict[str, torch.nn.Parameter]
    base: Base
    bits: int = 0
    any_parameter: bool = False
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
            TunedModel(self.model, spec, parameters, self.base, self.bits, _shared=self._shared)
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
        if self.spec.pairs:
            self.model.unload()
        else:
            _take_off(self.base.model)  # IA3's own unload refuses 4-bit layers even when nothing is merged
        self.parameters = {}
        if hasattr(self.base.model, "peft_config"):
            del self.base.model.peft_config
        return self.base

    def _config(self, lora: LoraShape) -> dict[str, Any]:
        body: dict[str, Any] = dict(self.model.peft_config[_ADAPTER].to_dict())
        kind = type(self.base.model)
        if "lora_alpha" in body:
            body |= {"r": lora.rank, "lora_alpha": lora.alpha}
        body |= {
            "base_model_name_or_path": self.base.source,
            "inference_mode": True,
            "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        }
        # Sets come in an order that changes from process to process.
        return {key: sorted(value) if isinstance(value, set) else value for key, value in body.items()}


def _take_off(model: Any) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())


def attach_lora(base: Base, config: LoraConfig, *, seed: int) -> TunedModel:
    """Puts LoRA factors, DoRA or IA3 on the chosen linears of ``base``.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) by a generator of its own for every tensor, keyed by ``seed`` and
    the tensor's name; B is zero, so the tuned model starts equal to its base. The same seed gives the same bits
    in every process; the global generators are left as they were. DoRA (Liu et al. 2024) adds each layer's column
    norms, which start at those of the stored weight; IA3 (Liu et al. 2022) is one scale a channel, which starts at 1.

    Args:
        base: a base that carries no adapter.
        config: method, rank, scale, dropout and where the adapter sits.
        seed: any integer.

    Raises:
        ModelError: a part or a module name matches nothing, or the base carries an adapter already.
    """
    if any(isinstance(module, BaseTunerLayer) for module in base.model.modules()):
        raise ModelError("The base carries an adapter already: detach it before attaching another.")
    sites = target_sites(base.model, config)
    if config.method == "ia3" and config.modules.strip() == "auto":
        sites = _ia3_sites(sites)
    paths = [site.path for site in sites]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT warns that merging into torchao weights is not possible; nothing is merged here.
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
        try:
            model = peft.get_peft_model(base.model, _peft_config(config, paths), adapter_name=_ADAPTER)
        except (TypeError, ValueError, NotImplementedError) as error:
            first = str(error).strip().partition("\n")[0].rstrip(".")
            raise ModelError(
                f"{config.method} cannot be put on a base stored as {base.report.backend} ({first}): choose another "
                "model.quantization or lora.method."
            ) from None
    parameters = {
        _file_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    expected = {f"base_model.model.{path}.{tensor}" for path in paths for tensor in _TENSORS[config.method]}
    if set(parameters) != expected:
        odd = sorted(set(parameters) ^ expected)[0]
        model.unload()
        raise ModelError(
            f"Trainable parameters and LoRA targets differ (first {odd}): name modules that PEFT adapts one by one."
        )
    for name, parameter in parameters.items():
        parameter.data = _initial(name, parameter, seed).to(parameter.device)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    spec = AdapterSpec.from_shapes(shapes, LoraShape(config.rank, config.alpha, config.rslora))
    bits = BITS[config.quantization_aware]
    return TunedModel(model, spec, parameters, base, bits, any_parameter=config.method in ("dora", "ia3"))


_TENSORS = {
    "lora": ("lora_A.weight", "lora_B.weight"),
    "dora": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
    "ia3": ("ia3_l",),
}


def _file_name(name: str) -> str:
    """The name that PEFT gives a tensor in its file."""
    plain = name.removesuffix(f".{_ADAPTER}").replace(f".{_ADAPTER}.", ".")
    return plain.removesuffix(".weight") if plain.endswith(".lora_magnitude_vector.weight") else plain


_FEEDFORWARD = ("down_proj", "fc2", "out_proj_mlp", "dense_4h_to_h")
_KEYS_VALUES = ("k_proj", "v_proj", "key", "value", "qkv")
BITS = {"none": 0, "int8": 8, "int4": 4}
"""Bits of ``lora.quantization-aware``."""


def _ia3_sites(sites: list[LinearSite]) -> list[LinearSite]:
    """Keys, values and the input of each MLP's second linear, as the paper has it; all where none is known by name."""
    found = [site for site in sites if site.path.rpartition(".")[2] in (*_KEYS_VALUES, *_FEEDFORWARD)]
    return found or sites


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


def _peft_config(config: LoraConfig, paths: list[str]) -> Any:
    if config.method == "ia3":
        return peft.IA3Config(
            target_modules=paths,
            feedforward_modules=[path for path in paths if path.rpartition(".")[2] in _FEEDFORWARD],
        )
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        use_dora=config.method == "dora",
        lora_dropout=config.dropout,
        target_modules=paths,
        bias="none",
    )


def _initial(name: str, made: torch.Tensor, seed: int) -> torch.Tensor:
    if name.endswith(".lora_B.weight"):
        return torch.zeros(made.shape)
    if not name.endswith(".lora_A.weight"):
        return made.detach().float()  # what the method starts from, fixed by the base alone
    return seeded_uniform(name, tuple(made.shape), seed)


def seeded_uniform(name: str, shape: tuple[int, ...], seed: int, bound: float | None = None) -> torch.Tensor:
    """float32 values from U(-bound, bound), 1/sqrt(last dimension) by default, fixed by seed and name alone."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    width = 1 / math.sqrt(shape[-1]) if bound is None else bound
    return torch.rand(shape, generator=generator) * (2 * width) - width
