"""What the composed model needs to know about a language model."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from torch import nn


class Language(ABC):
    """One kind of causal language model of transformers."""

    name: ClassVar[str]
    model_type: ClassVar[str]
    """``model_type`` of its transformers configuration."""

    def width(self, config: Any) -> int:
        """Width of its input embeddings."""
        return int(config.hidden_size)

    def build(self, config: Any) -> nn.Module:
        """A new model with random weights, head included."""
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_config(config)
        return model
