"""A small residual convolutional encoder (He et al. 2016) with GroupNorm (Wu and He 2018).

GroupNorm looks at one image at a time: no statistics couple the images of a batch, which a
guarantee per example needs, and none are left to drift while the base is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from mllm.encoders.base import Encoder
from umbel.errors import ModelError


class ResNetConfig(PreTrainedConfig):  # type: ignore[misc]
    """Shape of the encoder.

    Attributes:
        image_size: pixels a side; a multiple of ``stem_stride * 2**len(channels)``.
        channels: width of each stage; every stage halves the grid. The last is the token width.
        blocks: residual blocks a stage.
        stem_stride: stride of the first convolution.
        groups: groups of each GroupNorm; divides every entry of ``channels``.
    """

    model_type = "umbel_resnet"
    base_config_key = "vision_config"

    image_size: int = 64
    channels: list[int] | tuple[int, ...] = (32, 64, 128, 128)
    blocks: int = 1
    stem_stride: int = 1
    groups: int = 8

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.channels = list(self.channels)
        if not self.channels or self.blocks < 1 or self.stem_stride < 1 or self.groups < 1:
            raise ModelError(
                f"The resnet encoder has channels {self.channels}, blocks {self.blocks}, stem_stride "
                f"{self.stem_stride} and groups {self.groups}: give at least one stage and positive numbers."
            )
        if any(width % self.groups for width in self.channels):
            raise ModelError(
                f"The resnet encoder's channels {self.channels} are not all multiples of groups={self.groups}: "
                "change one of the two."
            )
        reduction = self.stem_stride * 2 ** len(self.channels)
        if self.image_size < reduction or self.image_size % reduction:
            raise ModelError(
                f"The resnet encoder divides images by {reduction}, but image_size is {self.image_size}: choose a "
                "multiple or fewer stages."
            )

    @property
    def hidden_size(self) -> int:
        """Width of an image token."""
        return int(self.channels[-1])

    @property
    def side(self) -> int:
        """Image tokens along each side."""
        reduction: int = self.stem_stride * 2 ** len(self.channels)
        return self.image_size // reduction


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut, as in He et al. 2016, figure 5 left."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.shortcut = (
            nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[images, inputs, H, W] to [images, outputs, H/stride, W/stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: torch.Tensor = functional.relu(y + self.shortcut(x))
        return out


class ResNetModel(PreTrainedModel):  # type: ignore[misc]
    """Images to a grid of tokens: [images, 3, H, W] to [images, side * side, channels[-1]]."""

    config_class = ResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        widths = list(config.channels)
        self.stem = nn.Conv2d(3, widths[0], 3, config.stem_stride, 1, bias=False)
        self.stem_norm = nn.GroupNorm(config.groups, widths[0])
        stages = []
        for index, width in enumerate(widths):
            before = widths[max(index - 1, 0)]
            stages += [
                ResidualBlock(before if n == 0 else width, width, 2 if n == 0 else 1, config.groups)
                for n in range(config.blocks)
            ]
        self.stages = nn.ModuleList(stages)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Tokens in reading order, in ``last_hidden_state``."""
        x = functional.relu(self.stem_norm(self.stem(pixel_values)))
        for block in self.stages:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x.flatten(2).transpose(1, 2))


class ResNet(Encoder):
    """The convolutional encoder of the demo base."""

    name = "resnet"
    model_type = ResNetConfig.model_type
    classes = (ResNetConfig, ResNetModel)

    def grid(self, config: Any) -> tuple[int, int]:
        """Tokens along each side."""
        side = int(config.side)
        return side, side

    def width(self, config: Any) -> int:
        """Channels of the last stage."""
        return int(config.hidden_size)

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Three stages; the grid is the image over 8."""
        return ResNetConfig(image_size=image_size, channels=[16, 32, width], groups=4)

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """The last stage's tokens.

        Raises:
            ModelError: another layer than -1 was asked for.
        """
        self.check(tower.config, layer)
        tokens: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
        return tokens
