"""Makes the composed model known to transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from mllm.config import ComposedConfig
from mllm.encoders import ENCODERS
from mllm.modeling import ComposedForConditionalGeneration
from mllm.processing import ComposedProcessor


def register() -> None:
    """Registers configurations, models and processor; doing it again changes nothing."""
    for encoder in ENCODERS.values():
        if encoder.classes is not None:
            config, model = encoder.classes
            AutoConfig.register(config.model_type, config, exist_ok=True)
            AutoModel.register(config, model, exist_ok=True)
    AutoConfig.register(ComposedConfig.model_type, ComposedConfig, exist_ok=True)
    AutoModelForImageTextToText.register(ComposedConfig, ComposedForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ComposedConfig, ComposedProcessor, exist_ok=True)
