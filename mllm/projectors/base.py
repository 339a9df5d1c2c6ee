"""What the composed model needs to know about a projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from umbel.errors import ModelError

Grid = tuple[int, int]


class Projector(ABC):
    """One kind of projector: image tokens [images, tokens in, width] to [images, tokens out, text width]."""

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    """Its options and their defaults; all are whole numbers or words."""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with ``given`` on top.

        Raises:
            ModelError: an unknown option or another type than the default's.
        """
        chosen = dict(self.defaults)
        for key, value in given.items():
            if key == "type":
                continue
            if key not in chosen or type(value) is not type(chosen[key]):
                expected = ", ".join(f"{k}={v!r}" for k, v in self.defaults.items())
                raise ModelError(f"Projector {self.name!r} cannot use {key}={value!r}: its options are {expected}.")
            chosen[key] = value
        return chosen

    @abstractmethod
    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """How many tokens come out of one image's grid.

        Raises:
            ModelError: the grid and the options do not go together.
        """

    @abstractmethod
    def build(self, options: Mapping[str, Any], grid: Grid, widths: Sequence[int], outputs: int) -> nn.Module:
        """A new projector with random weights, to width ``outputs``.

        Args:
            options: as :meth:`options` gives them.
            grid: rows and columns of the tokens that come in.
            widths: widths joined along a token's channels, one for each encoder.
            outputs: width of the language model.

        Raises:
            ModelError: a width is not divisible as the options ask.
        """

    def tiny(self) -> dict[str, Any]:
        """Options for tests on a grid of 4 x 4 and widths of 64."""
        return {}

    def rows(self, options: Mapping[str, Any], grid: Grid) -> tuple[int, ...]:
        """How many rows an image makes in its linear layers: all numbers that occur."""
        return (1,)


class OnePerToken(Projector):
    """A projector that looks at every token by itself: as many come out as go in."""

    def tokens(self, options: Mapping[str, Any], grid: Grid) -> int:
        """Rows times columns."""
        return grid[0] * grid[1]


def positive(name: str, options: Mapping[str, Any], *keys: str) -> None:
    """Raises ModelError unless these options are at least 1."""
    for key in keys:
        if int(options[key]) < 1:
            raise ModelError(f"Projector {name!r} cannot use {key}={options[key]}: give a number of at least 1.")


def divisible(name: str, what: str, width: int, parts: int) -> None:
    """Raises ModelError unless ``parts`` divides ``width``."""
    if parts < 1 or width % parts:
        raise ModelError(f"Projector {name!r} needs a width divisible by {what}={parts}, but it is {width}: change it.")


def depth_of(options: Mapping[str, Any]) -> int:
    """The option ``depth``.

    Raises:
        ModelError: it is below 1.
    """
    depth = int(options["depth"])
    if depth < 1:
        raise ModelError(f"A projector of depth {depth} projects nothing: use a depth of at least 1.")
    return depth


def mlp(inputs: int, outputs: int, depth: int, hidden: int = 0, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear to ``outputs``, then GELU and linear for every further layer (LLaVA-1.5, Liu et al. 2023).

    Args:
        inputs, outputs: widths.
        depth: linear layers.
        hidden: width between them; 0 means ``outputs``.
        activation: between the layers.
    """
    between = hidden or outputs
    widths = [inputs, *[between] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def to_plane(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[images, rows * columns, width] to [images, width, rows, columns]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def to_tokens(plane: torch.Tensor) -> torch.Tensor:
    """[images, width, rows, columns] to [images, rows * columns, width]."""
    return plane.flatten(2).transpose(1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [images, channels, rows, columns]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
