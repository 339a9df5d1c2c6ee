"""Microsoft's Phi-1.5 and Phi-2 (Li et al. 2023), and Phi-3 (Abdin et al. 2024)."""

from __future__ import annotations

from typing import Any

from mllm.language.base import Language


class Phi(Language):
    """``PhiForCausalLM``: attention and feed-forward side by side, rotary positions on part of a head."""

    name = "phi"
    model_type = "phi"


class Phi3(Language):
    """``Phi3ForCausalLM``: queries, keys and values in one matrix, gate and up in another."""

    name = "phi3"
    model_type = "phi3"

    def tiny_options(self, width: int) -> dict[str, Any]:
        """The length before positions are stretched."""
        return {"original_max_position_embeddings": 1024}
