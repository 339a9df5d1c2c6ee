"""The closed vocabulary of a privacy guarantee: wherever a free choice could break it, an enum stands."""

from __future__ import annotations

from enum import StrEnum


class Unit(StrEnum):
    """Whose presence is hidden."""

    EXAMPLE = "example"
    """One training example of one client."""
    CLIENT = "client"
    """One client with all its data."""


class Relation(StrEnum):
    """Which data sets count as neighbours (Dwork and Roth 2014, section 2.3)."""

    ADD_REMOVE = "add-remove"
    """One unit is there or not; a contribution clipped to C moves the sum by at most C."""
    REPLACE_ONE = "replace-one"
    """One unit is exchanged for another, the number is public; the sum moves by at most 2 C."""


class Sampler(StrEnum):
    """How the units of one step are chosen; only the first two amplify privacy."""

    POISSON = "poisson"
    """Each unit independently with probability q, drawn afresh every step."""
    FIXED_SIZE = "fixed-size"
    """A uniformly random subset of fixed size, drawn afresh every step."""
    SHUFFLED = "shuffled"
    """Each unit once an epoch, at a random step; accounted as one full release an epoch."""
    FULL = "full"
    """Every unit may be in every step: also the honest name for cohorts chosen by availability."""
    CYCLIC = "cyclic"
    """Each unit always at the same step of the epoch, for correlated noise."""

    @property
    def amplifies(self) -> bool:
        """True where secrecy of the sample lowers epsilon."""
        return self in (Sampler.POISSON, Sampler.FIXED_SIZE)


class Place(StrEnum):
    """Where noise is added, hence against whom the guarantee holds."""

    STEP = "step"
    """In every optimizer step of a client, before anything leaves it."""
    UPDATE = "update"
    """By each client on its own update (local model)."""
    COORDINATOR = "coordinator"
    """By a trusted coordinator on the sum of the cohort (central model)."""
    SECAGG = "secagg"
    """Jointly by the clients, under secure aggregation (distributed model)."""


class Mechanism(StrEnum):
    """The noise distribution."""

    GAUSSIAN = "gaussian"
    SKELLAM = "skellam"
    DISCRETE_GAUSSIAN = "discrete-gaussian"
    BANDED = "banded"
    """Gaussian noise correlated over steps by a banded Toeplitz matrix (DP-FTRL)."""


class Clipping(StrEnum):
    """How a whole update is bounded (client unit)."""

    FLAT = "flat"
    PER_LAYER = "per-layer"
    ADAPTIVE = "adaptive"
    """Flat, at a norm that follows a noised quantile (Andrew et al. 2021)."""
