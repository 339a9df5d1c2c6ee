"""The tower of Segment Anything (Kirillov et al. 2023), with Vary's two further convolutions where asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutput

from mllm.encoders.base import Encoder
from umbel.errors import ModelError


class SamTowerConfig(PreTrainedConfig):  # type: ignore[misc]
    """SAM's tower and what follows it.

    Attributes:
        sam_config: a ``SamVisionConfig``; patches, window attention, a neck of ``output_channels``.
        down: widths of 3x3 convolutions of stride 2 after the neck: [512, 1024] is Vary's "vision vocabulary"
            (Wei et al. 2023), 64 x 64 tokens of 256 to 16 x 16 of 1024.
    """

    model_type = "umbel_sam"
    base_config_key = "vision_config"
    sub_configs_defaults = {  # noqa: RUF012 - the form that transformers reads
        "sam_config": SubConfigSpec(config_class=AutoConfig, model_type="sam_vision_model")
    }

    sam_config: dict[str, Any] | PreTrainedConfig | None = None
    down: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.down = list(self.down)

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return int(self.sam_config.image_size)  # type: ignore[union-attr]


class SamTower(PreTrainedModel):  # type: ignore[misc]
    """Images to a grid of tokens: [images, 3, H, W] to [images, tokens, width]."""

    config_class = SamTowerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SamTowerConfig) -> None:
        super().__init__(config)
        from transformers import SamVisionModel

        sam: Any = config.sam_config
        self.sam = SamVisionModel(sam)
        widths = [sam.output_channels, *config.down]
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False) for before, after in pairwise(widths)
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Tokens in reading order, in ``last_hidden_state``."""
        x = self.sam(pixel_values=pixel_values).last_hidden_state
        for convolution in self.down:
            x = convolution(x)
        return BaseModelOutput(last_hidden_state=x.flatten(2).transpose(1, 2))


class Sam(Encoder):
    """SAM's windowed vision transformer."""

    name = "sam"
    model_type = SamTowerConfig.model_type
    classes = (SamTowerConfig, SamTower)

    def grid(self, config: Any) -> tuple[int, int]:
        """Patches along each side, halved (rounded up) by every convolution."""
        side = _patches(config)
        for _ in config.down:
            side = (side + 1) // 2
        return side, side

    def width(self, config: Any) -> int:
        """Channels of the last convolution."""
        return int(config.down[-1]) if config.down else int(config.sam_config.output_channels)

    def rows(self, config: Any) -> tuple[int, ...]:
        """One, and the windows that an image is cut into."""
        window = int(config.sam_config.window_size)
        return (1, (-(-_patches(config) // window)) ** 2) if window else (1,)

    def check(self, config: Any, layer: int) -> None:
        """Refuses images that the patches do not divide, and widths that the heads do not.

        Raises:
            ModelError: as said, or another layer than -1.
        """
        super().check(config, layer)
        sam = config.sam_config
        if sam.image_size % sam.patch_size or sam.hidden_size % sam.num_attention_heads:
            raise ModelError(
                f"The sam encoder needs an image_size ({sam.image_size}) divisible by its patch_size "
                f"({sam.patch_size}) and a width ({sam.hidden_size}) divisible by its heads "
                f"({sam.num_attention_heads}): change one of them."
            )

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Patches of 4 pixels in windows of 3 (so that windows are padded), and one convolution."""
        from transformers import SamVisionConfig

        sam = SamVisionConfig(
            hidden_size=width,
            mlp_dim=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=4,
            window_size=3,
            global_attn_indexes=[layers - 1],
            output_channels=width // 2,
            initializer_range=0.02,
        )
        return SamTowerConfig(sam_config=sam, down=[width])

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Tokens in reading order."""
        self.check(tower.config, layer)
        tokens: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
        return tokens


def _patches(config: Any) -> int:
    return int(config.sam_config.image_size) // int(config.sam_config.patch_size)
