"""Projectors: a new one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.projectors.base import Projector
from mllm.projectors.c_abstractor import CAbstractor
from mllm.projectors.fused_mlp import FusedMlp
from mllm.projectors.ldp import Ldp, LdpV2
from mllm.projectors.mlp import Mlp
from mllm.projectors.per_encoder import JoinedLinear, PerEncoder
from mllm.projectors.perceiver import Perceiver
from mllm.projectors.pixel_shuffle import PixelShuffle
from mllm.projectors.q_former import QFormer
from mllm.projectors.resampler import Resampler
from mllm.projectors.vss import Vss
from umbel.errors import ModelError

PROJECTORS: dict[str, Projector] = {
    projector.name: projector
    for projector in (
        Mlp(),
        PixelShuffle(),
        FusedMlp(),
        Ldp(),
        LdpV2(),
        CAbstractor(),
        QFormer(),
        Resampler(),
        Perceiver(),
        Vss(),
        PerEncoder(),
        JoinedLinear(),
    )
}


def projector_for(options: Mapping[str, Any]) -> Projector:
    """The projector that ``options["type"]`` names.

    Raises:
        ModelError: none has this name.
    """
    name = options.get("type")
    if name not in PROJECTORS:
        raise ModelError(f"Projector {name!r} is unknown: choose one of {', '.join(PROJECTORS)}.")
    return PROJECTORS[str(name)]
