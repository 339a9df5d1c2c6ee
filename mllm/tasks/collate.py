"""Collator: from examples to what a model takes, with labels on the answer alone.

A training row is ``prompt + answer + end-of-sequence``. The prompt is tokenised by the processor exactly as for
generation and the answer's tokens are appended afterwards, so that what is trained is what generation meets:
tokenising the joined text instead may merge characters across the border.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mllm.processing import ComposedProcessor
from mllm.tasks.example import Example, ImageSource
from umbel.errors import DataError, ModelError

IGNORED = -100
"""The label of tokens that are not trained on."""

_MOST_PROMPTS = 65536


@dataclass(frozen=True, slots=True)
class Batch:
    """``size`` examples, ready for ``model(**inputs)``.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask`` int64 [n, T], what the processor made of the images
            (``pixel_values`` and the like; absent when no example has an image), without labels.
        labels: int64 [n, T], :data:`IGNORED` on prompt, image and padding tokens. Not shifted.
        images_per_example: how many images each example has, in the order of the rows.
        size: n.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    images_per_example: list[int]
    size: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), self.images_per_example, self.size)


class Collator:
    """Turns examples into a :class:`Batch` with one model's processor.

    With a chat template the prompt is one user turn, its images first; without, it is one image placeholder
    and a line end for each image, and the question, after the beginning-of-sequence token where the tokenizer writes
    one. A composed model is asked with the template that its language model brings; such templates know text alone,
    so there its images are placeholders in the text.

    A :class:`~mllm.processing.ComposedProcessor` treats every question and image by itself, so its encoded
    questions, and the pixel values of images that do not change, are kept: a client sees its few examples again
    and again. ``cache_bytes`` bounds the pixel values.

    Attributes:
        teacher: gives the model that distillation learns from and its own collator; None where nothing is distilled.

    Raises:
        ModelError: there is no processor, or its tokenizer has no end-of-sequence token.
    """

    def __init__(self, processor: Any, *, cache_bytes: int = 128 * 1024 * 1024) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise ModelError("The model has no processor with a tokenizer: use a checkpoint that brings both.")
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end-of-sequence token, so an answer would have no end: set its eos_token."
            )
        self.processor, self.tokenizer = processor, tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id)
        self._image_token = str(getattr(processor, "image_token", None) or "<image>")
        template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        self._has_template = bool(template)
        self._separable = isinstance(processor, ComposedProcessor)
        self._begin = _beginning(tokenizer) if self._separable else ""  # other processors write it themselves
        self._cache_bytes = cache_bytes
        self._prompts: dict[tuple[str, int], Tensor] = {}
        self._pixels: dict[ImageSource, Tensor] = {}
        self._answers: dict[tuple[str, bool], list[int]] = {}
        self.teacher: Callable[[], tuple[Any, Collator]] | None = None

    @property
    def remembers(self) -> bool:
        """Whether encoded questions and the pixels of images that do not change are kept here."""
        return self._separable

    def require_teacher(self) -> None:
        """Loads the teacher, where there is one.

        Raises:
            ModelError: it cannot be loaded, or does not fit the model.
        """
        if self.teacher is not None:
            self.teacher()

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A training batch, padded on the right to the longest row.

        Raises:
            DataError: no examples, or an image cannot be read.
            ModelError: the processor cannot make such a batch.
        """
        rows, extra, others = self._encode(examples)
        answers = [self.answer_ids(example.answer, self.prompt(example)) for example in examples]
        ids = [torch.cat([row, torch.tensor(answer)]) for row, answer in zip(rows, answers, strict=True)]
        labels = [
            torch.cat([torch.full_like(row, IGNORED), torch.tensor(answer)])
            for row, answer in zip(rows, answers, strict=True)
        ]
        # Answer tokens are text: 0 in every map of token types that a processor may add.
        extra = {
            name: [
                torch.cat([value, value.new_zeros(len(answer))]) for value, answer in zip(values, answers, strict=True)
            ]
            for name, values in extra.items()
        }
        inputs = self._pad(ids, extra, "right") | others
        return Batch(inputs, _stack(labels, IGNORED, "right"), [len(e.images) for e in examples], len(examples))

    def prompts(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The inputs of ``model.generate``: prompts without answers, padded on the left.

        Raises:
            DataError: no examples, or an image cannot be read.
            ModelError: the processor cannot make such a batch.
        """
        rows, extra, others = self._encode(examples)
        return self._pad(rows, extra, "left") | others

    def prompt(self, example: Example) -> str:
        """The text before the answer, with one placeholder an image."""
        text = (self._image_token + "\n") * len(example.images) + example.question
        if not self._has_template:
            return self._begin + text
        if self._separable:
            return self._templated(self.tokenizer, text)
        parts: list[dict[str, str]] = [{"type": "image"} for _ in example.images]
        parts.append({"type": "text", "text": example.question})
        return self._templated(self.processor, parts)

    def _templated(self, owner: Any, content: str | list[dict[str, str]]) -> str:
        turns = [{"role": "user", "content": content}]
        try:
            return str(owner.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program of its author's
            raise ModelError(
                f"The chat template of {type(owner).__name__} cannot write a user's turn ({error}): take the template "
                "out of the tokenizer's files, or use a checkpoint whose template takes one."
            ) from None

    def answer_ids(self, answer: str, prompt: str) -> list[int]:
        """The answer's token ids and the end-of-sequence id; a blank parts it from a prompt that has none."""
        key = (answer, prompt[-1:].isspace())
        if key not in self._answers:
            text = answer if key[1] else " " + answer
            ids = [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
            if len(self._answers) < _MOST_PROMPTS:
                self._answers[key] = [*ids, self.eos_id]
            return [*ids, self.eos_id]
        return self._answers[key]

    def _encode(self, examples: Sequence[Example]) -> tuple[list[Tensor], dict[str, list[Tensor]], dict[str, Tensor]]:
        """Prompt ids a row, further per-token maps a row, and inputs that are not per token."""
        if not examples:
            raise DataError("A batch of no examples cannot be encoded: skip empty batches.")
        if self._separable:
            return self._encode_kept(examples)
        found = self._process([self.prompt(e) for e in examples], [[s.open() for s in e.images] for e in examples])
        mask = found.pop("attention_mask").bool()
        shape = found["input_ids"].shape
        tokens = {name: value for name, value in found.items() if value.shape == shape}
        others = {name: value for name, value in found.items() if name not in tokens}
        per_row = {name: [row[keep] for row, keep in zip(value, mask, strict=True)] for name, value in tokens.items()}
        fewer = getattr(self.processor, "umbel_tokens", None)
        if fewer is not None:
            per_row = _thinned(per_row, *fewer)
        return per_row.pop("input_ids"), per_row, others

    def _encode_kept(
        self, examples: Sequence[Example]
    ) -> tuple[list[Tensor], dict[str, list[Tensor]], dict[str, Tensor]]:
        """As :meth:`_encode`, remembering prompts by question and pixel values by image."""
        rows: list[Tensor] = []
        pixels: list[Tensor] = []
        for example in examples:
            key = (example.question, len(example.images))
            values = [self._pixels.get(source) for source in example.images]
            row = self._prompts.get(key)
            if row is None or any(value is None for value in values):
                found = self._process([self.prompt(example)], [[source.open() for source in example.images]])
                row = found["input_ids"][0]
                values = list(found["pixel_values"]) if example.images else []
                self._remember(key, row, example.images, values)
            rows.append(row)
            pixels.extend(value for value in values if value is not None)
        return rows, {}, {"pixel_values": torch.stack(pixels)} if pixels else {}

    def _remember(
        self, key: tuple[str, int], row: Tensor, sources: tuple[ImageSource, ...], values: Sequence[Tensor | None]
    ) -> None:
        if len(self._prompts) < _MOST_PROMPTS:
            self._prompts[key] = row
        for source, value in zip(sources, values, strict=True):
            size = 0 if value is None else value.numel() * value.element_size()
            if value is not None and source.keep and source not in self._pixels and size <= self._cache_bytes:
                self._cache_bytes -= size
                self._pixels[source] = value.clone()  # a view would keep its whole batch alive

    def _process(self, prompts: list[str], images: list[list[Any]]) -> dict[str, Tensor]:
        bos = self.tokenizer.bos_token
        options: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if self._has_template and bos and prompts[0].startswith(bos):
            options["add_special_tokens"] = False  # the template has written it already
        found: Any = None
        failure: Exception | None = None
        # Some processors want one list of images a text (Idefics, SmolVLM), some choke on an empty one (LLaVA, Qwen).
        flat = [image for group in images for image in group]
        for shape in [images, flat] if flat else [None]:
            try:
                found = self.processor(text=prompts, images=shape, **options)
                break
            except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
                failure = failure or error
        if found is None:
            raise ModelError(
                f"{type(self.processor).__name__} cannot encode {len(prompts)} prompts with {len(flat)} images "
                f"({failure}): give every example as many images as this model takes."
            )
        return {name: value for name, value in dict(found).items() if isinstance(value, Tensor)}

    def _pad(self, ids: list[Tensor], extra: dict[str, list[Tensor]], side: str) -> dict[str, Tensor]:
        inputs = {
            "input_ids": _stack(ids, self.pad_id, side),
            "attention_mask": _stack([torch.ones_like(row) for row in ids], 0, side),
        }
        return inputs | {name: _stack(values, 0, side) for name, values in extra.items()}


def _beginning(tokenizer: Any) -> str:
    """The token that this tokenizer begins every text with; empty if it writes none."""
    first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    return str(tokenizer.bos_token) if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else ""


def _stack(rows: list[Tensor], fill: int, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=side)


def _thinned(per_row: dict[str, list[Tensor]], token: int, before: int, kept: int) -> dict[str, list[Tensor]]:
    """Of every ``before`` image placeholders of a row the first ``kept``, in every map of tokens alike."""
    places = []
    for row in per_row["input_ids"]:
        image = row == token
        places.append(~image | ((image.cumsum(dim=0) - 1) % before < kept))
    return {name: [row[keep] for row, keep in zip(rows, places, strict=True)] for name, rows in per_row.items()}
