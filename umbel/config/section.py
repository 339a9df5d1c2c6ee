"""The base of all configuration sections: frozen, strict, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One group of options, ``[tool.flwr.app.config.<group>]`` in pyproject.toml.

    TOML has no null and Flower overrides only keys that exist, so every option always has a
    value; what is switched off says so by a word ("none", "auto"), never by an empty string.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
