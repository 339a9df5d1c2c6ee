"""What a client needs in memory to train a model: a traced step on tensors without storage, not a rule of thumb.

The model is built without storage, a training step runs on it, and every tensor that autograd or an operation holds is
counted until it is freed: so the peak of activations and gradients comes from the same operations that a client runs.
Weights, adapter and optimizer are counted from their shapes; quantization is counted from its block format. What a
traced step cannot show is measured once (:data:`SLACK`): the allocator's fragmentation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers.initialization import no_init_weights

from mllm.parts import LinearSite, linear_sites
from umbel.errors import ModelError

BITS: dict[str, float] = {"none": 32.0, "nf4": 4.5, "nf4-double": 4.127, "int8": 8.0, "int8-weight-only": 8.0}
"""Bits of one weight of a quantized layer: NF4 has a float32 scale for 64 weights; 8-bit scales are one a row."""
ADAPTER_COPIES = 4
"""Float32 values a trained parameter costs: itself, its gradient, and the two moments of AdamW."""
SLACK = 1.0
"""Measured peak over traced peak on this project's machines, see benchmarks/zoo_memory.py."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training takes.

    Attributes:
        base: the frozen weights as they are stored.
        adapter: trained parameters, gradients and optimizer state.
        activations: the highest sum of all else during a step.
        workspace: the largest quantized weight while it is multiplied in float32.
    """

    base: int
    adapter: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it, without Python and its libraries (about 450 MB on a CPU)."""
        return round((self.base + self.adapter + self.activations + self.workspace) * SLACK)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own hook
    """Counts the storages that operations make while it is active, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.level = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def ignore(self, tensors: Any) -> None:
        """Does not count these tensors' storages."""
        for tensor in tensors:
            self._seen.add(tensor.untyped_storage())

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.level += size
        self.peak = max(self.peak, self.level)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.level -= size


class _Lora(nn.Module):
    """A frozen linear layer with LoRA factors, as PEFT computes it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.empty(base.out_features, rank))

    @property
    def weight(self) -> Tensor:
        """The frozen weight, which some models look at."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, plus B A x."""
        linear = torch.nn.functional.linear
        out: Tensor = self.base(x) + linear(linear(x, self.a), self.b) * 2.0
        return out


@dataclass(frozen=True, slots=True)
class Step:
    """One (micro)batch of training: examples, images of each, and words beside them; every word is learned."""

    examples: int = 1
    images: int = 1
    words: int = 128


def training_memory(
    config: Any,
    step: Step,
    *,
    quantization: str = "nf4",
    rank: int = 8,
    parts: tuple[str, ...] = ("language",),
    checkpointing: bool = False,
) -> Memory:
    """Traces one training step of a composed model in float32, without its storage.

    Args:
        config: a ComposedConfig, of any size.
        step: what a step sees.
        quantization: how linear layers of language model and tower are stored.
        rank: of the factors.
        parts: which parts carry factors.
        checkpointing: recompute activations.

    Raises:
        ModelError: the quantization is unknown.
    """
    from mllm.modeling import ComposedForConditionalGeneration

    if quantization not in BITS:
        raise ModelError(f"Quantization {quantization!r} is unknown: choose one of {', '.join(BITS)}.")
    # Some constructors read numbers from tensors, which only work outside of the mode.
    with torch.device("meta"), no_init_weights():
        model = ComposedForConditionalGeneration(config).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.tie_weights()
        sites = [site for site in linear_sites(model) if not site.exempt]
        base, workspace = _stored(model, sites, quantization)
        trained = 0
        for site in sites:
            if site.part in parts:
                parent, _, name = site.path.rpartition(".")
                layer = _Lora(site.module, rank)
                setattr(model.get_submodule(parent), name, layer)
                trained += layer.a.numel() + layer.b.numel()
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        peak = _trace(model, step)
    # The gradients stand in the peak already.
    return Memory(base, ADAPTER_COPIES * 4 * trained, max(0, peak - 4 * trained), workspace)


DEPTHS = (2, 4)
"""Layers that :func:`extended_memory` traces."""


def extended_memory(config_of: Callable[[int], Any], layers: int, step: Step, **options: Any) -> Memory:
    """As :func:`training_memory` for a model of many equal layers: two depths are traced, and their line is extended.

    A state-space layer is scanned token by token, so tracing tens of them takes hours. Every layer adds the same bytes:
    where that is so the result equals a whole trace.

    Args:
        config_of: from a number of layers of the language model to a ComposedConfig.
        layers: of the model that is asked about, at least :data:`DEPTHS`' larger.
        step: what a step sees.
        options: of :func:`training_memory`.

    Raises:
        ModelError: as :func:`training_memory`.
    """
    low, high = DEPTHS
    near, far = (training_memory(config_of(depth), step, **options) for depth in DEPTHS)

    def extended(name: str) -> int:
        first, second = int(getattr(near, name)), int(getattr(far, name))
        return round(first + (second - first) * (layers - low) / (high - low))

    return Memory(extended("base"), extended("adapter"), extended("activations"), far.workspace)


def _stored(model: nn.Module, sites: list[LinearSite], quantization: str) -> tuple[int, int]:
    packed = {id(site.module.weight) for site in sites if site.part != "projector"}
    base = workspace = 0
    for parameter in {id(p): p for p in model.parameters()}.values():
        bits = BITS[quantization] if id(parameter) in packed else 32.0
        base += round(parameter.numel() * bits / 8)
        if bits < 32:
            workspace = max(workspace, 4 * parameter.numel())
    return base, workspace


def _trace(model: Any, step: Step) -> int:
    size, width = model.config.image_size, model.get_input_embeddings().weight.shape[1]
    pixels = torch.empty(step.examples * step.images, 3, size, size)
    words = torch.empty(step.examples, step.words, width)
    labels = torch.zeros(step.examples * step.words, dtype=torch.int64)
    mode = LiveBytes()
    mode.ignore([*model.parameters(), *model.buffers(), pixels, words, labels])
    with mode:
        _loss(model, step, pixels, words, labels).backward()  # type: ignore[no-untyped-call]
    return mode.peak


def _loss(model: Any, step: Step, pixels: Tensor, words: Tensor, labels: Tensor) -> Tensor:
    """The loss alone survives this call, as in training: logits are freed before the backward pass."""
    embeds = words.clone()
    if step.images:
        features = model.get_image_features(pixels).reshape(step.examples, -1, words.shape[-1])
        embeds = torch.cat([features, embeds], dim=1)
    logits = model(inputs_embeds=embeds, use_cache=False).logits
    learned = logits[:, -step.words :].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(learned, labels)
