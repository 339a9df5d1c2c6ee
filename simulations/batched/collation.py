"""Joint batches put together from examples that were encoded once.

A processor of the hub resizes, cuts and normalises images at every call, which for tiny models takes longer than the
training. Clients see their few examples again and again, so each example's encoding is kept and only padded anew.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mllm.tasks.collate import IGNORED, Batch, Collator
from mllm.tasks.example import Example, ImageSource

_BYTES = 256 * 1024 * 1024
_STACKED = ("pixel_values", "image_grid_thw")


class KeptCollator:
    """A collator that gives the batches of ``inner`` and remembers single examples.

    An image that may change is known by its file's identity, size and time of change, so that another content is
    encoded anew. What cannot be joined example by example (inputs of a kind not known here, images of different sizes)
    is left to ``inner``, and so are examples whose encodings it keeps itself.

    Args:
        inner: of the model.
        budget: most bytes of encodings to keep; nothing is evicted.
    """

    def __init__(self, inner: Collator, budget: int = _BYTES) -> None:
        self._inner = inner
        self._budget = budget
        self._kept: dict[Hashable, Batch] = {}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """See Collator."""
        if self._inner.remembers and all(source.keep for example in examples for source in example.images):
            return self._inner(examples)
        return join([self._one(example) for example in examples], self._inner.pad_id) or self._inner(examples)

    def _one(self, example: Example) -> Batch:
        key = (tuple(map(_identity, example.images)), example.question, example.answer)
        found = self._kept.get(key)
        if found is None:
            found = self._inner([example])
            size = sum(value.numel() * value.element_size() for value in found.inputs.values())
            if size <= self._budget:
                self._budget -= size
                self._kept[key] = found
        return found


def _identity(source: ImageSource) -> Hashable:
    """What an image's content is known by; a file that is not there is left for ``open`` to complain about."""
    if source.keep:
        return source
    try:
        found = os.stat(source.path)
    except OSError:
        return object()
    return (str(source.path), source.max_pixels, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


_latest: tuple[Collator, KeptCollator] | None = None


def kept_collator(inner: Collator) -> KeptCollator:
    """The KeptCollator of this collator, the same as long as no other is asked for: a process holds one model."""
    global _latest
    if _latest is None or _latest[0] is not inner:
        _latest = (inner, KeptCollator(inner))
    return _latest[1]


def join(batches: Sequence[Batch], pad_id: int) -> Batch | None:
    """One batch of several, text padded on the right; None when their inputs cannot be joined.

    Args:
        batches: at least one; each padded on the right, if at all.
        pad_id: token id of padding.
    """
    names = {name for batch in batches for name in batch.inputs}
    width = max(batch.labels.shape[1] for batch in batches)
    inputs: dict[str, Tensor] = {}
    for name in sorted(names):
        values = [batch.inputs.get(name) for batch in batches]
        present = [value for value in values if value is not None]
        if all(
            value is not None and value.shape == batch.labels.shape
            for value, batch in zip(values, batches, strict=True)
        ):
            inputs[name] = _padded(present, width, pad_id if name == "input_ids" else 0)
        elif name in _STACKED and present[0].ndim < 5 and len({value.shape[1:] for value in present}) == 1:
            inputs[name] = torch.cat(present)
        elif name in ("pixel_values", "pixel_attention_mask") and len({value.shape[2:] for value in present}) == 1:
            inputs[name] = _images(values, [batch.size for batch in batches])
        else:
            return None
    labels = _padded([batch.labels for batch in batches], width, IGNORED)
    counts = [count for batch in batches for count in batch.images_per_example]
    return Batch(inputs, labels, counts, sum(batch.size for batch in batches))


def _padded(values: Sequence[Tensor], width: int, fill: int) -> Tensor:
    """[n, T] of several to [sum n, width]."""
    out = values[0].new_full((sum(value.shape[0] for value in values), width), fill)
    row = 0
    for value in values:
        out[row : row + value.shape[0], : value.shape[1]] = value
        row += value.shape[0]
    return out


def _images(values: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor:
    """[n, images, ...] of several, missing ones and missing images zero, as processors of the Idefics family do."""
    first = next(value for value in values if value is not None)
    most = max(value.shape[1] for value in values if value is not None)
    out = first.new_zeros(sum(sizes), most, *first.shape[2:])
    row = 0
    for value, size in zip(values, sizes, strict=True):
        if value is not None:
            out[row : row + size, : value.shape[1]] = value
        row += size
    return out
