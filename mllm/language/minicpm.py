"""MiniCPM (Hu et al. 2024): Llama with the scalings of muP (Yang et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

from mllm.language.base import Language, sizes


class MiniCpm(Language):
    """``GraniteForCausalLM``, which has these scalings: of embeddings, of residuals, and of logits."""

    name = "minicpm"
    model_type = "granite"

    def image_scale(self, config: Any) -> float:
        """Granite scales whatever it is given, MiniCPM-V's image tokens are not scaled: so the inverse."""
        return 1.0 / float(config.embedding_multiplier)

    def tiny(self, width: int, layers: int, vocabulary: int, tie: bool) -> Any:
        """MiniCPM's own ratios at a small width."""
        return minicpm_config(
            **sizes(width, layers, vocabulary), tie_word_embeddings=tie, scale_emb=12, dim_model_base=width // 2
        )


def minicpm_config(
    *, scale_emb: float = 12, scale_depth: float = 1.4, dim_model_base: int = 256, **options: Any
) -> Any:
    """A ``GraniteConfig`` that computes what MiniCPM computes.

    Args:
        scale_emb: embeddings are multiplied by it.
        scale_depth: residual branches are multiplied by it over the square root of the number of layers.
        dim_model_base: logits are divided by the width over it.
        options: Llama's own.
    """
    from transformers import GraniteConfig

    return GraniteConfig(
        embedding_multiplier=float(scale_emb),
        residual_multiplier=scale_depth / math.sqrt(options["num_hidden_layers"]),
        logits_scaling=options["hidden_size"] / dim_model_base,
        attention_multiplier=(options["hidden_size"] // options["num_attention_heads"]) ** -0.5,
        **options,
    )
