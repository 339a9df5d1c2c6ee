"""CLIP's vision transformer (Radford et al. 2021): the CLS token is dropped."""

from __future__ import annotations

from mllm.encoders.base import TransformerEncoder


class Clip(TransformerEncoder):
    """``CLIPVisionModel``; LLaVA reads the last layer but one (``vision_feature_layer=-2``)."""

    name = "clip"
    model_type = "clip_vision_model"
    extra = 1
