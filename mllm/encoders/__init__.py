"""Vision encoders: a new one is one file here and one line below."""

from __future__ import annotations

from typing import Any

from mllm.encoders.base import Encoder
from mllm.encoders.clip import Clip
from mllm.encoders.convnext import ConvNext
from mllm.encoders.dinov2 import Dinov2, Dinov2Registers
from mllm.encoders.eva import Eva
from mllm.encoders.pair import Pair
from mllm.encoders.resnet import ResNet
from mllm.encoders.s2 import S2
from mllm.encoders.sam import Sam
from mllm.encoders.siglip import Siglip
from mllm.encoders.vit import Vit
from umbel.errors import ModelError

ENCODERS: dict[str, Encoder] = {
    encoder.name: encoder
    for encoder in (
        ResNet(),
        Siglip(),
        Clip(),
        Vit(),
        Dinov2(),
        Dinov2Registers(),
        Eva(),
        ConvNext(),
        Sam(),
        S2(),
        Pair(),
    )
}


def encoder_for(config: Any) -> Encoder:
    """The encoder whose configuration this is.

    Raises:
        ModelError: no registered encoder has this ``model_type``.
    """
    for encoder in ENCODERS.values():
        if encoder.model_type == config.model_type:
            return encoder
    known = ", ".join(f"{e.model_type} ({e.name})" for e in ENCODERS.values())
    raise ModelError(f"Vision encoder {config.model_type!r} is unknown to the composed model: choose one of {known}.")
