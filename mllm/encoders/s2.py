"""S2, scaling on scales (Shi et al. 2024): one tower over several sizes of the image, channels joined."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutput

from mllm.encoders.base import Encoder
from umbel.errors import ModelError


class S2Config(PreTrainedConfig):  # type: ignore[misc]
    """One tower at several scales.

    Attributes:
        tower_config: configuration of any other registered encoder; its image size is the base size.
        scales: whole multiples of the base size; the image comes at the largest. Scale k is cut into k * k tiles.
        layer: hidden state of the tower that is read.
    """

    model_type = "umbel_s2"
    base_config_key = "vision_config"
    sub_configs_defaults = {  # noqa: RUF012 - the form that transformers reads
        "tower_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model")
    }

    tower_config: dict[str, Any] | PreTrainedConfig | None = None
    scales: list[int] | tuple[int, ...] = (1, 2)
    layer: int = -1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.scales = list(self.scales)
        if not self.scales or min(self.scales) < 1 or sorted(set(self.scales)) != self.scales:
            raise ModelError(f"S2 scales {self.scales} cannot be used: give whole numbers from 1, ascending.")

    @property
    def image_size(self) -> int:
        """Pixels a side of the largest scale."""
        return int(_encoder(self).size(self.tower_config)) * max(self.scales)


class S2Tower(PreTrainedModel):  # type: ignore[misc]
    """Images to tokens: [images, 3, H, W] to [images, tokens of the tower, scales * width]."""

    config_class = S2Config
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: S2Config) -> None:
        super().__init__(config)
        self.tower = _encoder(config).tower(config.tower_config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Tokens in reading order, in ``last_hidden_state``."""
        encoder = _encoder(self.config)
        base = encoder.size(self.config.tower_config)
        rows, columns = encoder.grid(self.config.tower_config)
        images, joined = pixel_values.shape[0], []
        for scale in self.config.scales:
            size = base * scale
            resized = pixel_values
            if pixel_values.shape[-1] != size:
                resized = functional.interpolate(pixel_values, size=(size, size), mode="bicubic", antialias=True)
            # [images, 3, scale, base, scale, base] to tiles of one image next to each other
            tiles = resized.reshape(images, 3, scale, base, scale, base).permute(0, 2, 4, 1, 3, 5)
            tokens = encoder.features(self.tower, tiles.reshape(-1, 3, base, base), self.config.layer)
            grid = tokens.reshape(images, scale, scale, rows, columns, -1).permute(0, 5, 1, 3, 2, 4)
            whole = grid.reshape(images, -1, scale * rows, scale * columns)
            joined.append(functional.interpolate(whole, size=(rows, columns), mode="area") if scale > 1 else whole)
        return BaseModelOutput(last_hidden_state=torch.cat(joined, dim=1).flatten(2).transpose(1, 2))


class S2(Encoder):
    """Any tower at several scales."""

    name = "s2"
    model_type = S2Config.model_type
    classes = (S2Config, S2Tower)

    def grid(self, config: Any) -> tuple[int, int]:
        """The tower's grid."""
        return _encoder(config).grid(config.tower_config)

    def width(self, config: Any) -> int:
        """The tower's width times the number of scales."""
        return _encoder(config).width(config.tower_config) * len(config.scales)

    def rows(self, config: Any) -> tuple[int, ...]:
        """The tiles of every scale, times the tower's own."""
        inner = _encoder(config).rows(config.tower_config)
        return tuple(sorted({s * s * r for s in config.scales for r in inner} | {1}))

    def depth(self, config: Any, layer: int) -> dict[str, int]:
        """The tower's."""
        inner = _encoder(config).depth(config.tower_config, config.layer)
        return {".".join(filter(None, ("tower", path))): used for path, used in inner.items()}

    def check(self, config: Any, layer: int) -> None:
        """As the tower; the hidden state is chosen by ``vision_config.layer``.

        Raises:
            ModelError: as the tower, or ``vision_feature_layer`` is not -1.
        """
        super().check(config, layer)
        _encoder(config).check(config.tower_config, config.layer)

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """SigLIP at half the image size and at the whole."""
        from transformers import SiglipVisionConfig

        from mllm.encoders.base import tiny_vit

        return S2Config(tower_config=tiny_vit(SiglipVisionConfig, width // 2, layers, image_size // 2), scales=[1, 2])

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Tokens in reading order."""
        tokens: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
        return tokens


def _encoder(config: Any) -> Encoder:
    from mllm.encoders import encoder_for

    return encoder_for(config.tower_config)
