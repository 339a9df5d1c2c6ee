"""A model without what PEFT puts around it."""

from __future__ import annotations

from typing import Any


def unwrapped(model: Any) -> Any:
    """The model that PEFT wrapped, its layers still with their adapters; a model that nobody wrapped is itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
