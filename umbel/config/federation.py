"""Who takes part, for how many rounds, and what a run leaves behind."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section


class RunSection(Section):
    """Where results go and what fixes them."""

    directory: str = Field(default="runs", min_length=1)
    """Folder of all runs; a relative one counts from UMBEL_ROOT, or the working directory."""
    id: str = Field(default="auto", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run's folder; ``auto`` takes Flower's run id. An existing unfinished one is resumed."""
    seed: int = Field(default=0, ge=0)
    """Fixes partition, cohorts and training. Never used for noise or masks."""


class FederationConfig(Section):
    """Rounds and cohorts."""

    clients: int = Field(default=20, ge=1)
    """Population: number of data partitions in simulation."""
    rounds: int = Field(default=8, ge=1)
    """Rounds of the whole run."""
    cohort: Literal["all", "fixed", "poisson"] = "all"
    """How each round's cohort is drawn from the population."""
    cohort_size: int = Field(default=10, ge=1, alias="cohort-size")
    """Size of a fixed cohort, expected size of a Poisson one; ignored for ``all``."""
    minimum: int = Field(default=2, ge=1)
    """Fewest clients whose update must arrive for a round to count."""
    weights: Literal["uniform", "examples"] = "uniform"
    """Weight of each client in the average."""
    lanes: int = Field(default=1, ge=1, le=1024)
    """In simulation, most clients that train as one batch; 1 trains each by itself. Changes rounding only."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds to wait for a round's replies."""
    wait: float = Field(default=60.0, gt=0)
    """Seconds to wait for the population to connect at the start."""


class EvaluateConfig(Section):
    """Server-side evaluation."""

    every: int = Field(default=1, ge=0)
    """Rounds between evaluations; 0 evaluates only at the end."""
    limit: int = Field(default=1000, ge=0)
    """Most examples of the main set after a round; 0 takes all."""
    main: int = Field(default=0, ge=0)
    """Most examples of the main set at the beginning and the end; 0 takes all."""
    others: int = Field(default=1500, ge=0)
    """Most examples of the other sets at the beginning and the end; 0 takes all."""
    batch_size: int = Field(default=64, ge=1, alias="batch-size")
    """Examples in one forward pass of an evaluation."""
    clients: bool = False
    """Also ask clients to evaluate, with what they keep of their own, on data of theirs that is not trained on."""
    held_out: float = Field(default=0.2, gt=0, lt=1, alias="held-out")
    """Share of each client's examples that is held out for that; nothing is while evaluate.clients is off."""
    central: bool = False
    """At the end train the same LoRA on the pooled data for the same number of examples, as a comparison."""
    central_rate: float = Field(default=2e-3, gt=0, alias="central-rate", allow_inf_nan=False)
    """Learning rate of that comparison, which is never private and wants a lower one than noised steps."""
