"""Mixtures of experts of transformers: Mixtral (Jiang et al. 2024) and Qwen1.5-MoE (Qwen Team 2024).

No capacity bounds an expert, so the rows of a batch do not touch each other. Experts are stacked in one parameter, not
in linear layers: they carry no LoRA factors and stay unquantized.
"""

from __future__ import annotations

from typing import Any

from mllm.language.base import Language


class Mixtral(Language):
    """``MixtralForCausalLM``."""

    name = "mixtral"
    model_type = "mixtral"

    def tiny_options(self, width: int) -> dict[str, Any]:
        """Four experts, two a token."""
        return {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}


class Qwen2Moe(Language):
    """``Qwen2MoeForCausalLM``: a shared expert beside the chosen ones; only the shared one carries factors."""

    name = "qwen2-moe"
    model_type = "qwen2_moe"

    def tiny_options(self, width: int) -> dict[str, Any]:
        """Four experts, two a token, and the shared one."""
        return {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": width,
            "decoder_sparse_step": 1,
        }
