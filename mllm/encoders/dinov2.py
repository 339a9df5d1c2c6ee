"""DINOv2 (Oquab et al. 2023), and DINOv2 with registers (Darcet et al. 2023)."""

from __future__ import annotations

from typing import Any

from mllm.encoders.base import TransformerEncoder, tiny_vit


class Dinov2(TransformerEncoder):
    """``Dinov2Model``: the CLS token is dropped."""

    name = "dinov2"
    model_type = "dinov2"
    extra = 1

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Four heads, patches of 8 pixels, a feed-forward of twice the width."""
        from transformers import Dinov2Config

        return tiny_vit(Dinov2Config, width, layers, image_size, mlp_ratio=2)


class Dinov2Registers(TransformerEncoder):
    """``Dinov2WithRegistersModel``: the CLS token and the registers are dropped."""

    name = "dinov2-registers"
    model_type = "dinov2_with_registers"

    def leading(self, config: Any) -> int:
        """The CLS token and the registers."""
        return 1 + int(config.num_register_tokens)

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """As DINOv2's, with two registers."""
        from transformers import Dinov2WithRegistersConfig

        return tiny_vit(Dinov2WithRegistersConfig, width, layers, image_size, mlp_ratio=2, num_register_tokens=2)
