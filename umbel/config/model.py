"""Which model is tuned, how its frozen base is stored, and where the LoRA factors sit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from umbel.config.section import Section

Quantization = Literal["auto", "nf4", "nf4-double", "int8", "int8-weight-only", "none"]
_BACKENDS = ("nf4", "nf4-double", "int8", "int8-weight-only", "none")
REFUSED_BACKENDS = {
    "int8-dynamic": "torchao's dynamic int8 activations give silently wrong gradients",
    "int4-weight-only": "torchao's int4 layout has no gradient",
    "hqq": "HQQ layers of transformers cannot be trained through",
}
"""Backends that somebody may ask for, and why not."""
_PARTS = ("language", "vision", "projector")


class ModelConfig(Section):
    """The frozen base."""

    name: str = Field(default="demo", min_length=1)
    """``demo``, a model of the zoo (``umbel zoo``), a directory, or a hub id."""
    size: Literal["full", "tiny"] = "full"
    """Of a model of the zoo: its published weights, or the same architecture with tiny random ones for trials."""
    weights: str = "published"
    """Directories or hub ids in a zoo system's published layout, comma-separated; ``published``: its own."""
    quantization: Quantization = "auto"
    """How the base's linear weights are stored; ``auto`` picks by hardware."""
    quantization_parts: str = Field(default="same", alias="quantization-parts")
    """Parts stored otherwise, as in ``vision:int8,projector:nf4``; ``same``: none (a projector stays as it is)."""
    prune: Literal["none", "magnitude", "heads"] = "none"
    """Prune the base before it is quantized: single weights by magnitude, or groups of attention heads."""
    prune_share: float = Field(default=0.0, ge=0, lt=1, alias="prune-share")
    """Share of the weights, or of each layer's groups of heads, that is pruned."""
    calibration: Literal["none", "balanced"] = "none"
    """Clip 4-bit weights where that costs least on public examples, text and image tokens balanced by sensitivity."""
    calibration_examples: int = Field(default=32, ge=1, le=4096, alias="calibration-examples")
    """How many public examples the calibration looks at."""
    tokens: Literal["none", "pool", "tome", "prumerge", "fastv", "withdraw"] = "none"
    """What makes fewer image tokens: before the language model, or in it after model.token-layer layers."""
    token_share: float = Field(default=0.5, gt=0, le=1, alias="token-share")
    """Share of the image tokens that is kept; withdraw keeps none."""
    token_layer: int = Field(default=2, ge=1, alias="token-layer")
    """Layers of the language model that see every image token under fastv and withdraw."""
    feature_cache: Literal["none", "memory", "disk"] = Field(default="none", alias="feature-cache")
    """Keep the features of a frozen tower, by image: in memory, or sealed under UMBEL_HOME with this machine's key."""
    feature_cache_mb: int = Field(default=256, ge=1, alias="feature-cache-mb")
    """Most megabytes of them."""
    gradient_checkpointing: bool = Field(default=False, alias="gradient-checkpointing")
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @property
    def reference(self) -> str:
        """``name`` with size and weights, in the form that finds a base: ``bunny-v1:tiny``, ``bunny-v1=DIRECTORY``."""
        weights = "" if self.weights == "published" else f"={self.weights}"
        return self.name + ("" if self.size == "full" else f":{self.size}") + weights

    @field_validator("quantization", mode="before")
    @classmethod
    def _trainable(cls, name: object) -> object:
        if isinstance(name, str) and name in REFUSED_BACKENDS:
            raise ValueError(f"{name} is refused ({REFUSED_BACKENDS[name]}): choose one of {', '.join(_BACKENDS)}")
        return name

    @field_validator("quantization_parts")
    @classmethod
    def _known_parts(cls, text: str) -> str:
        quantization_of_parts(text)
        return text


def quantization_of_parts(text: str) -> dict[str, str]:
    """Reads ``model.quantization-parts``: backend by part; ``same`` gives {}.

    Raises:
        ValueError: not of that form, an unknown part or backend, or a part named twice.
    """
    found: dict[str, str] = {}
    for pair in [] if text.strip() == "same" else text.split(","):
        part, _, backend = (word.strip() for word in pair.partition(":"))
        if part not in _PARTS or backend not in _BACKENDS or part in found:
            raise ValueError(
                f"{pair.strip()!r} is no part:backend, write each of {', '.join(_PARTS)} at most once with one of "
                f"{', '.join(_BACKENDS)}, or same"
            )
        found[part] = backend
    return found


class LoraConfig(Section):
    """What is trained: LoRA factors (Hu et al. 2021) or another small adapter."""

    method: Literal["lora", "dora", "ia3", "adapter", "prompt", "prefix"] = "lora"
    """LoRA, DoRA, IA3, bottleneck adapters beside the same linears, or soft tokens as a prompt or a prefix."""
    tokens: int = Field(default=8, ge=1, le=1024)
    """Soft tokens of the methods prompt and prefix."""
    quantization_aware: Literal["none", "int8", "int4"] = Field(default="none", alias="quantization-aware")
    """Round the factors so in every training pass, gradients passing straight through, to serve them so later."""
    rank: int = Field(default=8, ge=1, le=1024)
    """Rank r of the factors."""
    alpha: float = Field(default=16.0, gt=0)
    """Numerator of the scale alpha/rank."""
    rslora: bool = False
    """Scale by alpha/sqrt(rank) instead of alpha/rank (Kalajdzievski 2023)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are dropped in training."""
    targets: str = "language"
    """Comma-separated parts that get factors: language, vision, projector."""
    modules: str = "auto"
    """Comma-separated names of linear layers inside those parts, or ``auto`` for all attention and MLP linears."""
