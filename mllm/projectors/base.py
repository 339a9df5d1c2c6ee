"""What the composed model needs to know about a projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

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
        """How many tokens come out of one image's grid."""

    @abstractmethod
    def build(self, options: Mapping[str, Any], grid: Grid, inputs: int, outputs: int) -> nn.Module:
        """A new projector with random weights, from width ``inputs`` to width ``outputs``."""


def depth_of(options: Mapping[str, Any]) -> int:
    """The option ``depth``.

    Raises:
        ModelError: it is below 1.
    """
    depth = int(options["depth"])
    if depth < 1:
        raise ModelError(f"A projector of depth {depth} projects nothing: use a depth of at least 1.")
    return depth


def mlp(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Linear to ``outputs``, then GELU and linear for every further layer (LLaVA-1.5, Liu et al. 2023)."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*layers)
