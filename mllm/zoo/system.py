"""System: one published efficient multimodal model, as parts that the composed model is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mllm.config import ComposedConfig
from mllm.images import ImageOptions
from mllm.projectors import PROJECTORS
from mllm.zoo.texts import text
from mllm.zoo.towers import TOWERS, multi_scale, pair, tower
from umbel.errors import ModelError

Size = Literal["full", "tiny"]
SIZES: tuple[Size, ...] = ("full", "tiny")


@dataclass(frozen=True)
class System:
    """A row of the zoo.

    Attributes:
        name: what ``model.name`` says.
        title: what its authors call it.
        paper: where it is described.
        towers: one tower of :data:`mllm.zoo.towers.TOWERS`, or two.
        language: one of :data:`mllm.zoo.texts.TEXTS`.
        projector: type and options; tiny options are the projector's own.
        join: how two towers are joined, or "".
        scales: of S2, or empty.
        layers: hidden state that is read, of each tower.
        fit: how an image is made square.
        weights: hub ids of the published weights: the model's own, then towers that are published apart.
        licence: of the published weights, from memory: to be checked on their pages before use; "" where
            nothing is published.
        note: what a reader should know about the row.
    """

    name: str
    title: str
    paper: str
    towers: tuple[str, ...]
    language: str
    projector: Mapping[str, Any]
    join: str = ""
    scales: tuple[int, ...] = ()
    layers: tuple[int, ...] = (-1,)
    fit: Literal["stretch", "pad", "crop"] = "pad"
    weights: tuple[str, ...] = ()
    licence: str = ""
    note: str = ""

    def config(self, size: Size, vocabulary: int = 64, image_token_id: int | None = None) -> ComposedConfig:
        """The composed configuration.

        Args:
            size: ``full``, or ``tiny`` for the same architecture with widths of 64 and two layers.
            vocabulary: of the tiny language model.
            image_token_id: the placeholder; by default the last row of the embedding.

        Raises:
            ModelError: unknown size.
        """
        if size not in SIZES:
            raise ModelError(f"Size {size!r} is unknown: choose {' or '.join(SIZES)}.")
        language = text(self.language, size, vocabulary)
        kind = PROJECTORS[self.projector["type"]]
        options = dict(self.projector) if size == "full" else {"type": kind.name, **kind.tiny(), **self._kept()}
        vision, layer = self._vision(size)
        return ComposedConfig(
            vision_config=vision,
            text_config=language,
            projector=options,
            image_token_id=language.vocab_size - 1 if image_token_id is None else image_token_id,
            vision_feature_layer=layer,
        )

    def image(self, config: ComposedConfig) -> ImageOptions:
        """How its images become pixels."""
        mean, std = TOWERS[self.towers[0]].statistics
        return ImageOptions(config.image_size, mean=mean, std=std, fit=self.fit)

    def _kept(self) -> dict[str, Any]:
        # Depth and directions are architecture, the rest is size.
        return {key: value for key, value in self.projector.items() if key in ("depth", "directions", "norm")}

    def _vision(self, size: Size) -> tuple[Any, int]:
        layers = self.layers if size == "full" else tuple(_tiny_layer(layer) for layer in self.layers)
        if self.join:
            return pair(self.towers, size, self.join, layers), -1
        if self.scales:
            return multi_scale(self.towers[0], size, list(self.scales), layers[0]), -1
        return tower(self.towers[0], size), layers[0]


def _tiny_layer(layer: int) -> int:
    """Hidden states counted from the front become the last of two layers."""
    return 2 if layer >= 0 else layer
