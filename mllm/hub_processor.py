"""Processors of published checkpoints, loaded without torchvision.

transformers 5 falls back to PIL for images by itself, but has no such way for videos: a processor that
names a video processor cannot be loaded without torchvision. Videos are not tuned here, so that part is
left empty.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from umbel.errors import ModelError

VIDEO = "video_processor"


@cache
def without_video(processor_class: type[Any]) -> type[Any]:
    """A subclass of a transformers processor that loads and works with no video processor.

    It keeps the name of the class, so that what it saves loads as that class elsewhere.
    """

    class ImageOnly(processor_class):  # type: ignore[misc]
        video_processor = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor_class.get_attributes() if name != VIDEO]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **options: Any) -> Any:
            # The class's own signature still has a place for the video processor: None goes there.
            parts = dict(zip(cls.get_attributes(), args, strict=True))
            full = [parts.get(name) for name in processor_class.get_attributes()]
            settings = {key: value for key, value in processor_dict.items() if key != VIDEO}
            return super().from_args_and_dict(full, settings, **options)

    ImageOnly.__name__ = processor_class.__name__
    ImageOnly.__qualname__ = processor_class.__qualname__
    ImageOnly.__module__ = processor_class.__module__
    return ImageOnly


def load_processor(name: str | Path) -> Any:
    """The processor of a directory or a hub id, with PIL images where torchvision is missing.

    Raises:
        ModelError: there is none, or it needs something that is not installed.
    """
    try:
        if not is_torchvision_available():
            config = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
            known = PROCESSOR_MAPPING_NAMES.get(config.model_type)
            kind = getattr(transformers, known, None) if known else None
            if kind is not None and VIDEO in kind.get_attributes():
                return without_video(kind).from_pretrained(str(name), trust_remote_code=False)
        return AutoProcessor.from_pretrained(str(name), trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its parts raise
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"The processor of {name} cannot be loaded ({first}): expected tokenizer and image processor files beside "
            "the weights."
        ) from None
