"""CLIP's vision transformer (Radford et al. 2021): the CLS token is dropped."""

from __future__ import annotations

from typing import Any

from mllm.encoders.base import TransformerEncoder, tiny_vit


class Clip(TransformerEncoder):
    """``CLIPVisionModel``; LLaVA reads the last layer but one (``vision_feature_layer=-2``)."""

    name = "clip"
    model_type = "clip_vision_model"
    extra = 1

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Four heads, patches of 8 pixels."""
        from transformers import CLIPVisionConfig

        return tiny_vit(CLIPVisionConfig, width, layers, image_size)
