"""What is done to a base before it is quantized: pruning and calibration, as ``model.*`` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mllm.calibrate import calibrate
from mllm.load import Prepared
from mllm.prune import prune_heads, prune_magnitude
from mllm.quantize import Prepare
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example
from umbel.config.model import ModelConfig
from umbel.errors import QuantizationError


def preparation(config: ModelConfig, public: Callable[[], Sequence[Example] | None]) -> Prepared | None:
    """For :func:`mllm.load.load_base`; None when nothing is to be done.

    Args:
        config: of the model.
        public: gives public examples, evenly spread ones of which are looked at; asked only for a calibration.

    Raises (when it is called):
        QuantizationError: a calibration without public examples.
        ModelError: the model cannot be pruned so.
    """
    if config.prune == "none" and config.calibration == "none":
        return None

    def prepare(model: Any, processor: Any) -> Prepare | None:
        if config.prune != "none":
            (prune_heads if config.prune == "heads" else prune_magnitude)(model, config.prune_share)
        if config.calibration == "none":
            return None
        examples = public()
        if not examples:
            raise QuantizationError(
                "The task has no public examples to calibrate with: set model.calibration to none, or choose easy-vqa."
            )
        step = max(1, len(examples) // config.calibration_examples)
        chosen = [examples[i] for i in range(0, len(examples), step)][: config.calibration_examples]
        token = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", -1))
        return calibrate(model, Collator(processor), chosen, int(token)).prepare()

    return prepare
