"""ConvNeXt (Liu et al. 2022), the convolutional tower that OpenCLIP trained and Mini-Gemini and SPHINX use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mllm.encoders.base import Encoder
from umbel.errors import ModelError


class ConvNext(Encoder):
    """``ConvNextModel``: the last stage, or with ``join_stages`` all of them.

    Attributes of the configuration, False where they are missing: ``join_stages`` brings every stage to the grid of
    the first by bilinear interpolation and joins their channels, as Mini-Gemini does; ``norm_last`` applies the final
    norm to every token, as OpenCLIP's trunk does in SPHINX, and not to their mean.
    """

    name = "convnext"
    model_type = "convnext"

    def grid(self, config: Any) -> tuple[int, int]:
        """Side of the image over the patch, halved by every stage after the first."""
        stages = 0 if _joined(config) else len(config.hidden_sizes) - 1
        side = int(config.image_size) // (int(config.patch_size) * 2**stages)
        return side, side

    def width(self, config: Any) -> int:
        """Channels of the last stage, or of all."""
        return sum(config.hidden_sizes) if _joined(config) else int(config.hidden_sizes[-1])

    def check(self, config: Any, layer: int) -> None:
        """Refuses an image that the stages do not divide.

        Raises:
            ModelError: as said, or another layer than -1.
        """
        super().check(config, layer)
        factor = int(config.patch_size) * 2 ** (len(config.hidden_sizes) - 1)
        if config.image_size % factor or not config.image_size:
            raise ModelError(
                f"The convnext encoder divides images by {factor}, but image_size is {config.image_size}: choose a "
                "multiple."
            )

    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """Two stages of ``layers`` blocks; the grid is the image over 8."""
        from transformers import ConvNextConfig

        return ConvNextConfig(
            image_size=image_size, hidden_sizes=[width // 2, width], depths=[1, layers], num_stages=2, patch_size=4
        )

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Tokens in reading order."""
        self.check(tower.config, layer)
        if not _joined(tower.config):
            last: torch.Tensor = tower(pixel_values=pixels).last_hidden_state.flatten(2).transpose(1, 2)
            if getattr(tower.config, "norm_last", False):
                last = tower.layernorm(last)  # type: ignore[operator]
            return last
        stages = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        side = self.grid(tower.config)
        wide = [stages[0], *(functional.interpolate(s, size=side, mode="bilinear") for s in stages[1:])]
        return torch.cat(wide, dim=1).flatten(2).transpose(1, 2)


def _joined(config: Any) -> bool:
    return bool(getattr(config, "join_stages", False))
