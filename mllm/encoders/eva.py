"""EVA (Fang et al. 2022): the ViT-g that BLIP-2, MiniGPT-4 and TinyGPT-V look through."""

from __future__ import annotations

from typing import Any

from torch import nn

from mllm.encoders.base import TransformerEncoder, tiny_vit


class Eva(TransformerEncoder):
    """``Blip2VisionModel``, which is EVA's ViT with one matrix for queries, keys and values; CLS is dropped."""

    name = "eva"
    model_type = "blip_2_vision_model"
    extra = 1

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Four heads, patches of 8 pixels."""
        from transformers import Blip2VisionConfig

        return tiny_vit(Blip2VisionConfig, width, layers, image_size, initializer_range=0.02)

    def tower(self, config: Any) -> nn.Module:
        """The tower: transformers' Auto classes do not list it."""
        from transformers import Blip2VisionModel

        tower: nn.Module = Blip2VisionModel(config)
        return tower
