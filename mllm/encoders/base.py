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
    classes: ClassVar[tuple[type[Any], type[Any]] | None] = None
    """Configuration and model class, where transformers does not know them already."""

    @abstractmethod
    def grid(self, config: Any) -> tuple[int, int]:
        """Rows and columns of image tokens that one image gives."""

    @abstractmethod
    def width(self, config: Any) -> int:
        """Width of one image token."""

    @abstractmethod
    def tiny(self, width: int, layers: int, image_size: int) -> Any:
        """A configuration for tests: ``width`` a multiple of 64, ``image_size`` of 16."""

    def size(self, config: Any) -> int:
        """Pixels a side of the images that the tower takes."""
        return int(config.image_size)

    def widths(self, config: Any) -> tuple[int, ...]:
        """Widths that are joined along the channels of a token; their sum is :meth:`width`."""
        return (self.width(config),)

    def rows(self, config: Any) -> tuple[int, ...]:
        """How many rows an image makes in linear layers of the tower (tiles, windows): all numbers that occur."""
        return (1,)

    def depth(self, config: Any, layer: int) -> dict[str, int]:
        """How many layers of a tower are used, by its path inside this one; a tower that is left out is used whole."""
        return {}

    def check(self, config: Any, layer: int) -> None:
        """Raises ModelError when the configuration is impossible or offers no hidden state ``layer``."""
        if layer != -1:
            raise ModelError(f"vision_feature_layer {layer} does not exist: the {self.name} encoder offers -1 only.")

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

    def leading(self, config: Any) -> int:
        """Tokens before the first patch."""
        return self.extra

    def check(self, config: Any, layer: int) -> None:
        """Refuses a width that the heads do not divide, a patch larger than the image, and a layer that is not there.

        Raises:
            ModelError: as said.
        """
        if config.hidden_size % config.num_attention_heads:
            raise ModelError(
                f"The {self.name} encoder's width {config.hidden_size} is not divisible by its "
                f"{config.num_attention_heads} heads: change one of the two."
            )
        if not 1 <= int(config.patch_size) <= int(config.image_size):
            raise ModelError(
                f"The {self.name} encoder cuts images of {config.image_size} pixels into patches of "
                f"{config.patch_size}: choose a patch_size that fits."
            )
        states = int(config.num_hidden_layers) + 1
        if not -states <= layer < states:
            raise ModelError(
                f"vision_feature_layer {layer} does not exist: the {self.name} tower has hidden states "
                f"{-states} to {states - 1}."
            )

    def depth(self, config: Any, layer: int) -> dict[str, int]:
        """Layers below the hidden state that is read."""
        # hidden_states has one entry more than layers; entry k is the output of layer k - 1.
        return {"": int(config.num_hidden_layers) + 1 + layer if layer < 0 else layer}

    def features(self, tower: nn.Module, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Patch tokens of the chosen layer, in reading order."""
        self.check(tower.config, layer)
        if layer == -1:
            tokens: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
        else:
            tokens = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        return tokens[:, self.leading(tower.config) :]


def tiny_vit(kind: type[Any], width: int, layers: int, image_size: int, **more: Any) -> Any:
    """The tiny configuration of a vision transformer of transformers: four heads, patches of 8 pixels."""
    return kind(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=8,
        **more,
    )
