"""The plain vision transformer (Dosovitskiy et al. 2021): the CLS token is dropped."""

from __future__ import annotations

from typing import Any

from torch import nn

from mllm.encoders.base import TransformerEncoder, tiny_vit


class Vit(TransformerEncoder):
    """``ViTModel`` without its pooler, which image tokens do not need."""

    name = "vit"
    model_type = "vit"
    extra = 1

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Four heads, patches of 8 pixels."""
        from transformers import ViTConfig

        return tiny_vit(ViTConfig, width, layers, image_size)

    def tower(self, config: Any) -> nn.Module:
        """The tower without a pooler."""
        from transformers import AutoModel

        tower: nn.Module = AutoModel.from_config(config, add_pooling_layer=False)
        return tower
