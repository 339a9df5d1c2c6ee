"""What is promised about privacy; `privacy.plan` turns it into one frozen PrivacyPlan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section


class PrivacyConfig(Section):
    """Differential privacy."""

    unit: Literal["none", "example", "client"] = "none"
    """Whose presence is hidden: one training example, one whole client, or nobody's."""
    epsilon: float = Field(default=8.0, gt=0)
    """The budget of the whole run."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    relation: Literal["add-remove", "replace-one"] = "add-remove"
    sampler: Literal["poisson", "fixed-size", "shuffled", "full"] = "poisson"
    place: Literal["step", "update", "coordinator", "secagg"] = "step"
    """Where noise is added: in each client's steps or update, at a trusted coordinator, or jointly under secagg."""
    noise: Literal["calibrate", "fixed"] = "calibrate"
    """``calibrate`` finds the noise multiplier for epsilon; ``fixed`` takes ``noise-multiplier``."""
    noise_multiplier: float = Field(default=1.0, gt=0, alias="noise-multiplier")
    clipping_norm: float = Field(default=1.0, gt=0, alias="clipping-norm")
    engine: Literal["auto", "bookkeeping", "loop", "opacus"] = "auto"
    """Per-example gradient engine."""
