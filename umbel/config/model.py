"""Which model is tuned, how its frozen base is stored, and where the LoRA factors sit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section

Quantization = Literal["auto", "nf4", "nf4-double", "int8", "int8-weight-only", "none"]


class ModelConfig(Section):
    """The frozen base."""

    name: str = Field(default="demo", min_length=1)
    """``demo``, a directory, or a hub id that AutoModelForImageTextToText loads."""
    quantization: Quantization = "auto"
    """How the base's linear weights are stored; ``auto`` picks by hardware."""
    gradient_checkpointing: bool = Field(default=False, alias="gradient-checkpointing")
    """Recompute activations in the backward pass: less memory, about a third more time."""


class LoraConfig(Section):
    """The trainable factors (Hu et al. 2021)."""

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
