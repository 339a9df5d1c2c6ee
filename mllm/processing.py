"""ComposedProcessor: text with ``<image>`` marks and PIL images to what the composed model takes, and how much of it.

:func:`limit_context` holds for every model, composed or not: beyond the positions that a language model was trained
on it says nothing that means anything, and transformers computes it without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.utils import cached_file

from mllm.config import ComposedConfig
from mllm.images import ImageOptions
from mllm.tokenizer import IMAGE
from umbel.errors import DataError, ModelError
from umbel.files import write_atomic

CONFIG_FILE = "processor_config.json"
_TEMPLATE = 128
"""Tokens that a chat template may write around a question."""


class ComposedProcessor:
    """Tokenizer and image preparation of a :class:`~mllm.modeling.ComposedForConditionalGeneration`.

    Args:
        tokenizer: a fast tokenizer that knows ``image_token`` as one token.
        image: how an image becomes pixels.
        image_tokens: placeholders an image is worth (``ComposedConfig.tokens_per_image``).
        image_token: how an image is written in a text.

    Raises:
        ModelError: the tokenizer has no padding token or does not know the placeholder.
    """

    def __init__(self, tokenizer: Any, image: ImageOptions, image_tokens: int, image_token: str = IMAGE) -> None:
        self.tokenizer = tokenizer
        self.image = image
        self.image_tokens = image_tokens
        self.image_token = image_token
        self.chat_template: str | None = None
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(image_token))
        if self.image_token_id == tokenizer.unk_token_id or tokenizer.pad_token_id is None:
            raise ModelError(
                f"The tokenizer lacks {image_token!r} or a padding token: add both as special tokens before making "
                "the processor."
            )
        if image_tokens < 1:
            raise ModelError(f"An image is worth {image_tokens} tokens, expected at least 1: use tokens_per_image.")

    @classmethod
    def for_config(cls, config: ComposedConfig, tokenizer: Any, **image: Any) -> ComposedProcessor:
        """The processor that fits ``config``; ``image`` holds options of ImageOptions other than the size.

        Raises:
            ModelError: the tokenizer's placeholder is not the configuration's.
        """
        processor = cls(tokenizer, ImageOptions(config.image_size, **image), config.tokens_per_image)
        if processor.image_token_id != config.image_token_id:
            raise ModelError(
                f"The tokenizer writes {processor.image_token!r} as {processor.image_token_id}, but the model expects "
                f"{config.image_token_id}: set image_token_id to the tokenizer's."
            )
        return processor

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Sequence[Image.Image] | Image.Image] | None = None,
        *,
        padding_side: Literal["right", "left"] = "right",
        return_tensors: str = "pt",
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            text: one text an example, with ``<image>`` wherever one of its images goes.
            images: the images of each example, in the order of their marks; None if the batch has none.
            padding_side: ``right`` for training, ``left`` for generation.
            return_tensors: ``pt``.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 [n, T], and, if there are images, ``pixel_values``,
            float32 [images, 3, H, W], all images of the batch in reading order.

        Raises:
            DataError: no text, or a text's marks and its images differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text)
        groups = [[] for _ in texts] if images is None else [_group(entry) for entry in images]
        if not texts:
            raise DataError("The processor was given no text: give at least one example.")
        if len(groups) != len(texts):
            raise DataError(
                f"There are {len(texts)} texts but {len(groups)} lists of images: give one list a text, empty if it "
                "has none."
            )
        for index, (line, group) in enumerate(zip(texts, groups, strict=True)):
            if line.count(self.image_token) != len(group):
                raise DataError(
                    f"Text {index} of the batch has {line.count(self.image_token)} {self.image_token} marks but "
                    f"{len(group)} images: write one mark for each image."
                )
        if return_tensors != "pt":
            raise DataError(f"return_tensors {return_tensors!r} is not supported: use 'pt'.")
        expanded = [line.replace(self.image_token, self.image_token * self.image_tokens) for line in texts]
        ids = self.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        batch = self.pad(ids, padding_side)
        flat = [image for group in groups for image in group]
        if flat:
            batch["pixel_values"] = self.pixel_values(flat)
        return batch

    def pad(self, ids: Sequence[Sequence[int]], padding_side: str = "right") -> dict[str, torch.Tensor]:
        """Rows of token ids to ``input_ids`` and ``attention_mask``, int64 [n, T].

        Raises:
            DataError: the side is neither ``right`` nor ``left``.
        """
        if padding_side not in ("right", "left"):
            raise DataError(f"padding_side {padding_side!r} is unknown: use 'right' or 'left'.")
        width = max(1, *(len(row) for row in ids)) if ids else 1
        input_ids = torch.full((len(ids), width), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for index, row in enumerate(ids):
            place = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
            input_ids[index, place] = torch.tensor(row, dtype=torch.long)
            mask[index, place] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """float32 [images, 3, H, W]; no images give no rows."""
        if not images:
            return torch.zeros((0, 3, self.image.size, self.image.size))
        return torch.from_numpy(np.stack([self.image.pixels(image) for image in images]))

    def decode(self, ids: Any, **options: Any) -> str:
        """The tokenizer's ``decode``."""
        return str(self.tokenizer.decode(ids, **options))

    def batch_decode(self, ids: Any, **options: Any) -> list[str]:
        """The tokenizer's ``batch_decode``."""
        return list(self.tokenizer.batch_decode(ids, **options))

    def save_pretrained(self, directory: str | Path, **_: Any) -> list[str]:
        """Writes the tokenizer's files and ``processor_config.json``.

        Raises:
            RunError: the directory cannot be written.
        """
        body = {
            "processor_class": type(self).__name__,
            "image": self.image.to_dict(),
            "image_tokens": self.image_tokens,
            "image_token": self.image_token,
        }
        target = Path(directory) / CONFIG_FILE
        write_atomic(target, json.dumps(body, indent=2, sort_keys=True).encode() + b"\n")
        self.tokenizer.save_pretrained(str(directory))
        return [str(target)]

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> ComposedProcessor:
        """Reads what :meth:`save_pretrained` wrote, from a directory or a hub id.

        Raises:
            ModelError: a file is missing or cannot be read.
        """
        keep = {key: options[key] for key in ("revision", "cache_dir", "local_files_only", "token") if key in options}
        try:
            path = cached_file(str(name), CONFIG_FILE, **keep)
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            image: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in body["image"].items()}
            tokenizer = AutoTokenizer.from_pretrained(str(name), **keep)
            return cls(tokenizer, ImageOptions(**image), int(body["image_tokens"]), str(body["image_token"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"The processor of {name} cannot be read ({first}): expected {CONFIG_FILE} and tokenizer files as "
                "save_pretrained writes them."
            ) from None


def _group(entry: Sequence[Image.Image] | Image.Image) -> list[Image.Image]:
    return [entry] if isinstance(entry, Image.Image) else list(entry)


def context_limit(config: Any) -> int | None:
    """Tokens that the language model of ``config`` sees at most; None where it has no such limit (a state space)."""
    limit = getattr(getattr(config, "text_config", None) or config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def limit_context(model: Any) -> None:
    """From now on ``model`` refuses, with a DataError, rows that are longer than its language model's context.

    Answers count as well. A model without a limit stays as it is.
    """
    limit = context_limit(model.config)
    if limit is not None:
        token = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
        model.register_forward_pre_hook(partial(_within, limit, token), with_kwargs=True)


def check_rows(model: Any, collator: Any, examples: Iterable[Any]) -> None:
    """Refuses the first of ``examples`` that is too long for ``model`` to be trained on, before anything is paid for.

    Images are not opened. Of a processor that is not a :class:`ComposedProcessor` only the text is counted, because
    what an image is worth there depends on its size: the model itself refuses what is longer with its images.

    Args:
        model: with or without PEFT's wrapper.
        collator: a :class:`~mllm.tasks.collate.Collator` of the model.
        examples: with ``question``, ``answer`` and ``images``.

    Raises:
        DataError: as said; the sentence names the example's file and line where it has an image.
    """
    limit = context_limit(model.config)
    if limit is None:
        return
    processor = collator.processor
    each = processor.image_tokens if isinstance(processor, ComposedProcessor) else 1
    for example in examples:
        images = each * len(example.images)
        # No tokenizer makes more tokens than there are bytes, so nearly every example is passed without counting.
        if len(example.question.encode()) + len(example.answer.encode()) + images + _TEMPLATE <= limit:
            continue
        prompt = collator.prompt(example)
        words = len(collator.tokenizer(prompt, add_special_tokens=False)["input_ids"]) - len(example.images)
        tokens = max(0, words) + images + len(collator.answer_ids(example.answer, prompt))
        if tokens > limit:
            origin = next((source.origin for source in example.images if source.origin), "")
            raise too_long(tokens, images if each > 1 else None, limit, f"The row of {origin}" if origin else "A row")


def too_long(tokens: int, images: int | None, limit: int, row: str = "A row") -> DataError:
    """The sentence about a row of ``tokens``, ``images`` of which stand for images (None where nobody knows)."""
    which = "" if images is None else f", {images} of them image tokens,"
    return DataError(
        f"{row} has {tokens} tokens{which} and the language model takes at most {limit}: give it fewer images or "
        "frames (task.frames, --frames), let model.tokens make fewer image tokens, or shorten the text."
    )


def _within(limit: int, token: int | None, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook. Looks at shapes alone while a row fits, so nothing waits for the device."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    embeds, past = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
    new = ids if ids is not None else embeds
    if new is None:
        return
    seen = int(past.get_seq_length()) if past is not None and hasattr(past, "get_seq_length") else 0
    if seen + new.shape[1] <= limit:
        return
    mask = kwargs.get("attention_mask")
    row, tokens = 0, seen + new.shape[1]
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] == tokens:
        lengths = mask.sum(dim=1)
        row = int(lengths.argmax())
        tokens = int(lengths[row])
    if tokens > limit:
        images = None if ids is None or token is None or seen else int((ids[row] == token).sum())
        raise too_long(tokens, images, limit)
