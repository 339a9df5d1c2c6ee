"""Which federated LoRA method runs."""

from __future__ import annotations

from pydantic import Field

from umbel.config.section import Section


class StrategyConfig(Section):
    """The method; `umbel strategies` lists them."""

    name: str = Field(default="fedit", min_length=1)
    """The federated LoRA method."""
