"""How one client trains in one round."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section


class TrainConfig(Section):
    """Local training."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Local optimizer; it starts afresh each round."""
    learning_rate: float = Field(default=8e-2, gt=0, alias="learning-rate")
    """Of the local optimizer."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate falls over all rounds: not at all, or to a twentieth along a half cosine."""
    weight_decay: float = Field(default=0.0, ge=0, alias="weight-decay")
    """Decoupled, of the local optimizer."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of SGD."""
    unit: Literal["steps", "epochs"] = "steps"
    """What ``amount`` counts."""
    amount: int = Field(default=5, ge=1)
    """Local steps, or passes over the client's data, each round."""
    batch_size: int = Field(default=64, ge=1, alias="batch-size")
    """Examples a step; under Poisson sampling the expected number."""
    microbatch: int = Field(default=64, ge=1)
    """Most examples in one forward pass: gradients of several are accumulated to a batch."""
    max_grad_norm: float = Field(default=1.0, ge=0, alias="max-grad-norm")
    """Clip the batch gradient (without example-level DP); 0 switches it off. Not a privacy mechanism."""
    distill: Literal["none", "global", "teacher"] = "none"
    """Also learn what the adapter as it was sent says (against forgetting), or what a larger teacher says."""
    distill_weight: float = Field(default=0.5, gt=0, le=1, alias="distill-weight")
    """Share of the loss that distillation gets."""
    distill_temperature: float = Field(default=2.0, gt=0, alias="distill-temperature", allow_inf_nan=False)
    """Both distributions are softened by it."""
    teacher: str = Field(default="none", min_length=1)
    """A directory or hub id of the teacher, with the same tokenizer; none without one."""
    balance: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Share of the loss that spreads each example's tokens over a mixture's experts; nothing without experts."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one training client."""
