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
from transformers.image_utils import make_flat_list_of_images
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


@cache
def with_placeholders(processor_class: type[Any]) -> type[Any]:
    """A subclass of BLIP-2's processor that counts the images of each text by their placeholders.

    The class itself puts one image before every text, and a placeholder that the text has is one too many. Here a text
    begins with the tokens of all its images, in reading order; it needs at least one, because the model has no way
    without. It keeps the name of the class, so that what it saves loads as that class elsewhere.
    """

    class Counting(processor_class):  # type: ignore[misc]
        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            mark, texts = str(self.image_token), [text] if isinstance(text, str) else list(text or [])
            flat = [] if images is None else make_flat_list_of_images(images)
            counts = [one.count(mark) for one in texts]
            if 0 in counts or sum(counts) != len(flat):
                raise ValueError(f"each text needs an image, and there are placeholders for {counts} of {len(flat)}")
            token, special = self.tokenizer.convert_tokens_to_ids(mark), options.get("add_special_tokens", True)
            words = [self.tokenizer(one.replace(mark, "").lstrip(), add_special_tokens=special) for one in texts]
            ids = [
                [token] * count * self.num_query_tokens + word["input_ids"]
                for count, word in zip(counts, words, strict=True)
            ]
            kept = {key: options[key] for key in ("padding", "padding_side", "return_tensors") if key in options}
            found = self.tokenizer.pad({"input_ids": ids}, **{"padding": False, **kept})
            found.update(self.image_processor(flat, return_tensors=options.get("return_tensors")))
            return found

    Counting.__name__ = processor_class.__name__
    Counting.__qualname__ = processor_class.__qualname__
    Counting.__module__ = processor_class.__module__
    return Counting


def load_processor(name: str | Path) -> Any:
    """The processor of a directory or a hub id, with PIL images where torchvision is missing.

    Raises:
        ModelError: there is none, or it needs something that is not installed.
    """
    try:
        config = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
        known = PROCESSOR_MAPPING_NAMES.get(config.model_type)
        kind = getattr(transformers, known, None) if known else None
        if known == "Blip2Processor":
            return with_placeholders(kind).from_pretrained(str(name), trust_remote_code=False)
        if kind is not None and VIDEO in kind.get_attributes() and not is_torchvision_available():
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
