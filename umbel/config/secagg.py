"""Secure aggregation's parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section


class SecAggConfig(Section):
    """Masked sums: nobody reads one client's update."""

    enabled: bool = True
    """Whether updates leave the clients only as masked vectors."""
    graph: Literal["auto", "complete", "sparse"] = "auto"
    """``auto``: complete up to 200 clients, k-regular above; below 100 sparse is refused."""
    bits: Literal[16, 20, 24, 32] = 20
    """Bits a value on the wire."""
    clip: float = Field(default=50.0, gt=0)
    """Largest L2 norm of an update; a larger one is scaled down to it."""
    corrupt: float = Field(default=0.1, ge=0, lt=1)
    """Share of the cohort that may collude with the coordinator."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the cohort that may drop out in the middle of a round."""
    minimum: int = Field(default=3, ge=3)
    """Smallest cohort in which a client takes part."""
    stage_timeout: float = Field(default=120.0, gt=0, alias="stage-timeout")
    """Seconds to wait for each protocol stage."""
    attempts: int = Field(default=3, ge=1)
    """How often an aborted round is repeated with fresh keys."""
