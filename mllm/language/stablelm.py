"""StableLM (Bellagente et al. 2024)."""

from __future__ import annotations

from mllm.language.base import Language


class StableLm(Language):
    """``StableLmForCausalLM``: rotary positions on a quarter of each head."""

    name = "stablelm"
    model_type = "stablelm"
