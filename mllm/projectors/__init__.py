"""Projectors: a new one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.projectors.base import Projector
from mllm.projectors.mlp import Mlp
from mllm.projectors.pixel_shuffle import PixelShuffle
from umbel.errors import ModelError

PROJECTORS: dict[str, Projector] = {projector.name: projector for projector in (Mlp(), PixelShuffle())}


def projector_for(options: Mapping[str, Any]) -> Projector:
    """The projector that ``options["type"]`` names.

    Raises:
        ModelError: none has this name.
    """
    name = options.get("type")
    if name not in PROJECTORS:
        raise ModelError(f"Projector {name!r} is unknown: choose one of {', '.join(PROJECTORS)}.")
    return PROJECTORS[str(name)]
