"""SigLIP (Zhai et al. 2023): patches only, no CLS token."""

from __future__ import annotations

from typing import Any

from torch import nn

from mllm.encoders.base import TransformerEncoder, tiny_vit


class Siglip(TransformerEncoder):
    """``SiglipVisionModel`` without its pooling head, which image tokens do not need."""

    name = "siglip"
    model_type = "siglip_vision_model"

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Four heads, patches of 8 pixels."""
        from transformers import SiglipVisionConfig

        return tiny_vit(SiglipVisionConfig, width, layers, image_size)

    def tower(self, config: Any) -> nn.Module:
        """The tower; its configuration is told that there is no pooling head."""
        config.vision_use_head = False
        return super().tower(config)
