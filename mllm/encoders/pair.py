"""Two encoders as one: channels joined (Cobra, SPHINX, Vary) or patch-info mining (Mini-Gemini)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutput

from mllm.encoders.base import Encoder
from umbel.errors import ModelError

JOINS = ("channels", "mining")


class PairConfig(PreTrainedConfig):  # type: ignore[misc]
    """Two towers that look at the same image.

    Attributes:
        first_config, second_config: configurations of two other registered encoders.
        join: ``channels`` brings the second's tokens to the first's grid and joins the widths; ``mining`` lets every
            token of the first attend to its own cell of the second's finer grid (Li et al. 2024, section 3.2).
        first_layer, second_layer: hidden states that are read.
        second_scale, second_shift: per channel, what turns pixels normalised for the first tower into the second's
            (``std1 / std2`` and ``(mean1 - mean2) / std2``).
    """

    model_type = "umbel_pair"
    base_config_key = "vision_config"
    sub_configs_defaults = {  # noqa: RUF012 - the form that transformers reads
        "first_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "second_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext"),
    }

    first_config: dict[str, Any] | PreTrainedConfig | None = None
    second_config: dict[str, Any] | PreTrainedConfig | None = None
    join: str = "channels"
    first_layer: int = -1
    second_layer: int = -1
    second_scale: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0)
    second_shift: list[float] | tuple[float, ...] = (0.0, 0.0, 0.0)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.second_scale, self.second_shift = list(self.second_scale), list(self.second_shift)
        if self.join not in JOINS:
            raise ModelError(f"Two encoders cannot be joined by {self.join!r}: choose {' or '.join(JOINS)}.")

    @property
    def image_size(self) -> int:
        """Pixels a side of the larger of the two towers."""
        return max(
            encoder.size(sub)
            for encoder, sub in zip(_encoders(self), (self.first_config, self.second_config), strict=True)
        )


class Mining(nn.Module):
    """Patch-info mining: queries from the first tower, keys and values from the cell of the second."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(first), nn.Linear(first, first))
        self.key = nn.Sequential(nn.LayerNorm(second), nn.Linear(second, first))
        self.value = nn.Sequential(nn.LayerNorm(second), nn.Linear(second, first))

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """[images, N, first] and [images, N, M, second] to [images, N, first]."""
        query, key, value = self.query(low), self.key(high), self.value(high)
        scores = (query.unsqueeze(2) @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mined: torch.Tensor = low + (scores.softmax(-1) @ value).squeeze(2)
        return mined


class PairTower(PreTrainedModel):  # type: ignore[misc]
    """Images to tokens of the first tower's grid."""

    config_class = PairConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        first, second = _encoders(config)
        self.first = first.tower(config.first_config)
        self.second = second.tower(config.second_config)
        if config.join == "mining":
            self.mining = Mining(first.width(config.first_config), second.width(config.second_config))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Tokens in reading order, in ``last_hidden_state``."""
        config = self.config
        one, two = _encoders(config)
        first = one.features(self.first, _resized(pixel_values, one.size(config.first_config)), config.first_layer)
        scale = pixel_values.new_tensor(config.second_scale).view(1, 3, 1, 1)
        shift = pixel_values.new_tensor(config.second_shift).view(1, 3, 1, 1)
        again = _resized(pixel_values, two.size(config.second_config)) * scale + shift
        second = two.features(self.second, again, config.second_layer)
        rows, columns = one.grid(config.first_config)
        fine = two.grid(config.second_config)
        if config.join == "mining":
            return BaseModelOutput(last_hidden_state=self.mining(first, _cells(second, fine, (rows, columns))))
        if fine != (rows, columns):
            plane = second.transpose(1, 2).reshape(second.shape[0], -1, *fine)
            plane = functional.interpolate(plane, size=(rows, columns), mode="bilinear")
            second = plane.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=torch.cat([first, second], dim=-1))


class Pair(Encoder):
    """Two towers over the same image."""

    name = "pair"
    model_type = PairConfig.model_type
    classes = (PairConfig, PairTower)

    def grid(self, config: Any) -> tuple[int, int]:
        """The first tower's grid."""
        return _encoders(config)[0].grid(config.first_config)

    def width(self, config: Any) -> int:
        """Both widths together, or with mining the first's."""
        return sum(self.widths(config))

    def widths(self, config: Any) -> tuple[int, ...]:
        """The width of each tower; with mining the first's alone."""
        one, two = _encoders(config)
        if config.join == "mining":
            return (one.width(config.first_config),)
        return one.width(config.first_config), two.width(config.second_config)

    def rows(self, config: Any) -> tuple[int, ...]:
        """What occurs in either tower."""
        one, two = _encoders(config)
        return tuple(sorted({1, *one.rows(config.first_config), *two.rows(config.second_config)}))

    def depth(self, config: Any, layer: int) -> dict[str, int]:
        """Both towers'."""
        one, two = _encoders(config)
        used = {}
        for name, encoder, sub, read in (
            ("first", one, config.first_config, config.first_layer),
            ("second", two, config.second_config, config.second_layer),
        ):
            used.update({".".join(filter(None, (name, p))): n for p, n in encoder.depth(sub, read).items()})
        return used

    def check(self, config: Any, layer: int) -> None:
        """As both towers; with mining the second's grid must be a multiple of the first's.

        Raises:
            ModelError: as said, or ``vision_feature_layer`` is not -1 (``first_layer`` and ``second_layer`` choose).
        """
        super().check(config, layer)
        one, two = _encoders(config)
        one.check(config.first_config, config.first_layer)
        two.check(config.second_config, config.second_layer)
        (rows, columns), fine = one.grid(config.first_config), two.grid(config.second_config)
        if config.join == "mining" and (fine[0] % rows or fine[1] % columns):
            raise ModelError(
                f"Mining needs a second grid that is a multiple of the first, but they are {fine[0]} x {fine[1]} and "
                f"{rows} x {columns}: change the image_size of one encoder."
            )

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """CLIP at half the image size and a ConvNeXt with all stages, mined: a grid of image over 16 in cells of 16."""
        from mllm.encoders import ENCODERS

        second = ENCODERS["convnext"].tiny(width, layers, image_size)
        second.join_stages = True
        return PairConfig(
            first_config=ENCODERS["clip"].tiny(width, layers, image_size // 2), second_config=second, join="mining"
        )

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Tokens in reading order."""
        tokens: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
        return tokens


def _encoders(config: Any) -> tuple[Encoder, Encoder]:
    from mllm.encoders import encoder_for

    return encoder_for(config.first_config), encoder_for(config.second_config)


def _resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    if pixels.shape[-1] == size:
        return pixels
    return functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)


def _cells(tokens: torch.Tensor, fine: tuple[int, int], coarse: tuple[int, int]) -> torch.Tensor:
    """[images, fine tokens, width] to [images, coarse tokens, tokens of a cell, width]."""
    (rows, columns), (r, c) = coarse, (fine[0] // coarse[0], fine[1] // coarse[1])
    split = tokens.reshape(tokens.shape[0], rows, r, columns, c, -1).permute(0, 1, 3, 2, 4, 5)
    return split.reshape(tokens.shape[0], rows * columns, r * c, -1)
