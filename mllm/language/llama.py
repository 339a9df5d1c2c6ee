"""Llama (Touvron et al. 2023) and what shares its layout: MobileLLaMA, TinyLlama, SmolLM."""

from __future__ import annotations

from mllm.language.base import Language


class Llama(Language):
    """``LlamaForCausalLM``."""

    name = "llama"
    model_type = "llama"
