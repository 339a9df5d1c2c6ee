"""Gemma (Gemma Team 2024)."""

from __future__ import annotations

import math
from typing import Any

from mllm.language.base import Language


class Gemma(Language):
    """``GemmaForCausalLM``: embeddings are multiplied by the square root of the width.

    Published multimodal Gemmas (LLaVA-Gemma, Mini-Gemini) were trained when transformers multiplied image tokens as
    well, so they are multiplied here.
    """

    name = "gemma"
    model_type = "gemma"

    def image_scale(self, config: Any) -> float:
        """The square root of the width."""
        return math.sqrt(config.hidden_size)

    def tiny_options(self, width: int) -> dict[str, Any]:
        """Heads whose width is the model's over four."""
        return {"head_dim": width // 4}
