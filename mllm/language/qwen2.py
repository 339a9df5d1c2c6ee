"""Qwen1.5 and Qwen2 (Yang et al. 2024)."""

from __future__ import annotations

from mllm.language.base import Language


class Qwen2(Language):
    """``Qwen2ForCausalLM``."""

    name = "qwen2"
    model_type = "qwen2"
