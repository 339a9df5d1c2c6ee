"""What the composed model needs to know about a language model."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from umbel.errors import ModelError


class Language(ABC):
    """One kind of causal language model of transformers."""

    name: ClassVar[str]
    model_type: ClassVar[str]
    """``model_type`` of its transformers configuration."""
    stateful: ClassVar[bool] = False
    """It keeps a state that cannot be rolled back, so that assisted decoding is impossible."""

    def matches(self, config: Any) -> bool:
        """Whether this is the kind that ``config`` describes."""
        return bool(config.model_type == self.model_type and not getattr(config, "upcycle", None))

    def check(self, config: Any) -> None:
        """Refuses heads that do not share out the width, or keys and values that do not share out the heads.

        Raises:
            ModelError: as said.
        """
        heads = getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):
            return
        if getattr(config, "head_dim", None) is None and config.hidden_size % heads:
            raise ModelError(
                f"The {self.name} model's width {config.hidden_size} is not divisible by its {heads} heads: change "
                "one of the two."
            )
        groups = getattr(config, "num_key_value_heads", None) or heads
        if heads % groups:
            raise ModelError(
                f"The {self.name} model's {heads} heads are not divisible by its {groups} key and value heads: change "
                "one of the two."
            )

    def width(self, config: Any) -> int:
        """Width of its input embeddings."""
        return int(config.hidden_size)

    def image_scale(self, config: Any) -> float:
        """What image tokens are multiplied by before they stand beside embedded words."""
        return 1.0

    def build(self, config: Any) -> nn.Module:
        """A new model with random weights, head included."""
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_config(config)
        return model

    def run(self, model: nn.Module, embeds: torch.Tensor, **arguments: Any) -> CausalLMOutputWithPast:
        """One forward pass from input embeddings [n, T, width]; arguments as for causal models of transformers."""
        outputs: CausalLMOutputWithPast = model(inputs_embeds=embeds, **arguments)
        return outputs

    def cache(self, config: Any) -> Any:
        """A cache for generation, or None where transformers' own choice is right."""
        return None

    def tiny(self, width: int, layers: int, vocabulary: int, tie: bool) -> Any:
        """A configuration for tests: four heads of ``width`` / 4, two of them for keys and values."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.model_type](
            **sizes(width, layers, vocabulary), tie_word_embeddings=tie, **self.tiny_options(width)
        )

    def tiny_options(self, width: int) -> dict[str, Any]:
        """What :meth:`tiny` needs beyond the usual sizes."""
        return {}


def sizes(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """The usual options of a tiny causal model; ids 0, 1 and 2 pad, begin and end."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
