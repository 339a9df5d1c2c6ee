"""What is promised about privacy; `privacy.plan` turns it into one frozen PrivacyPlan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section


class PrivacyConfig(Section):
    """Differential privacy."""

    unit: Literal["none", "example", "client"] = "example"
    """Whose presence is hidden: one training example, one whole client, or nobody's."""
    epsilon: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    """The budget of the whole run."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Of the guarantee; at most 1 over the number of units."""
    relation: Literal["add-remove", "replace-one"] = "add-remove"
    """Which data sets count as neighbours."""
    sampler: Literal["poisson", "fixed-size", "shuffled", "full", "cyclic"] = "poisson"
    """How units are chosen; for the client unit it must say how federation.cohort draws (``full`` claims nothing)."""
    place: Literal["step", "update", "coordinator", "secagg"] = "step"
    """Where noise is added: in each client's steps or update, at a trusted coordinator, or jointly under secagg."""
    mechanism: Literal["auto", "gaussian", "skellam", "discrete-gaussian", "banded"] = "auto"
    """``auto``: Skellam under secagg, Gaussian elsewhere; ``banded`` correlates noise over steps (sampler cyclic)."""
    bands: int = Field(default=8, ge=1, le=256)
    """Bands of the correlated noise: memory of bands - 1 vectors at the client."""
    noise: Literal["calibrate", "fixed"] = "calibrate"
    """``calibrate`` finds the noise multiplier for epsilon; ``fixed`` takes ``noise-multiplier``."""
    noise_multiplier: float = Field(default=1.0, gt=0, alias="noise-multiplier", allow_inf_nan=False)
    """Standard deviation of the noise over the sensitivity under the relation."""
    clipping_norm: float = Field(default=0.3, gt=0, alias="clipping-norm", allow_inf_nan=False)
    """Largest L2 norm of one unit's contribution."""
    clipping: Literal["flat", "per-layer", "adaptive"] = "flat"
    """How whole updates are bounded (client unit)."""
    quantile: float = Field(default=0.5, gt=0, lt=1)
    """Share of updates that adaptive clipping leaves whole."""
    quantile_rate: float = Field(default=0.2, gt=0, le=5, alias="quantile-rate")
    """Learning rate of the adaptive clipping norm, in log space."""
    quantile_noise: float = Field(default=2.0, gt=0, alias="quantile-noise", allow_inf_nan=False)
    """Standard deviation of the noise on the count of updates within the norm."""
    engine: Literal["auto", "bookkeeping", "loop", "opacus", "opacus-ghost"] = "auto"
    """Per-example gradient engine."""
