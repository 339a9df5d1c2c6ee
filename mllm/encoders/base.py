"""What the composed model needs to know about a vision encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from umbel.errors import ModelError


class Encoder(ABC):
    """One kind of vision encoder: how to build its tower and how to read image tokens from it.

    The tower itself is a transformers model, so that published weights keep their names.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    """``model_type`` of its transformers configuration."""

    @abstractmethod
    def grid(self, config: Any) -> tuple[int, int]:
        """Rows and columns of image tokens that one image gives."""

    @abstractmethod
    def width(self, config: Any) -> int:
        """Width of one image token."""

    def tower(self, config: Any) -> nn.Module:
        """A new tower with random weights."""
        from transformers import AutoModel

        tower: nn.Module = AutoModel.from_config(config)
        return tower

    @abstractmethod
    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Image tokens [images, tokens, width] of ``pixels`` [images, 3, H, W].

        Args:
            tower: what :meth:`tower` built.
            pixels: normalised pixels in the tower's dtype.
            layer: which hidden state to read; -1 is the tower's output.
        """


class TransformerEncoder(Encoder):
    """An encoder of square patches from transformers; ``extra`` leading tokens (such as CLS) are dropped."""

    extra: ClassVar[int] = 0

    def grid(self, config: Any) -> tuple[int, int]:
        """Patches along each side."""
        side = int(config.image_size) // int(config.patch_size)
        return side, side

    def width(self, config: Any) -> int:
        """The tower's hidden size."""
        return int(config.hidden_size)

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Patch tokens of the chosen layer, in reading order.

        Raises:
            ModelError: the tower has no such layer.
        """
        if layer == -1:
            tokens: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
        else:
            states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
            if not -len(states) <= layer < len(states):
                raise ModelError(
                    f"vision_feature_layer {layer} does not exist: the {self.name} tower has hidden states "
                    f"{-len(states)} to {len(states) - 1}."
                )
            tokens = states[layer]
        return tokens[:, self.extra :]
