"""Image tokens of a frozen vision tower, computed once an image.

Where only the language model carries factors, tower and projector are a fixed function of the image. Clients see their
few images at every step of every round, so what the function gave is kept. It is always computed image by image: its
last bits then depend on the image alone, never on who shared its batch or which actor saw it first.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mllm.features import MemoryFeatures
from simulations.batched.state import LaneSite

_BYTES = 256 * 1024 * 1024
_FAMILY = "umbel_vlm"
_FROZEN = ("vision_tower", "projector")


class KeptFeatures:
    """``get_image_features`` of a composed model, remembered by the pixels' values.

    Args:
        model: the bare base; it is not kept alive.
        budget: most bytes of features to keep; nothing is evicted, and what does not fit is computed again.
    """

    def __init__(self, model: Any, budget: int = _BYTES) -> None:
        self._model = weakref.ref(model)
        self._kept = MemoryFeatures(budget)

    def __call__(self, pixel_values: Tensor, **options: Any) -> Tensor:
        """Image tokens [images, tokens, width] of pixels [images, 3, H, W], without a gradient."""
        model = self._model()
        assert model is not None  # it is calling
        compute: Callable[..., Tensor] = partial(type(model).get_image_features, model)
        if options or pixel_values.ndim != 4 or pixel_values.shape[0] == 0:
            return compute(pixel_values, **options)
        kind = f"{next(model.parameters()).dtype} {pixel_values.dtype} {tuple(pixel_values.shape[1:])}".encode()
        with torch.no_grad():
            return torch.cat([self._one(compute, kind, pixels) for pixels in torch.split(pixel_values.contiguous(), 1)])

    def belongs_to(self, model: Any) -> bool:
        """Whether these are the features of this very model."""
        return self._model() is model

    def _one(self, compute: Callable[..., Tensor], kind: bytes, pixels: Tensor) -> Tensor:
        digest = hashlib.blake2b(kind, digest_size=16)
        digest.update(pixels.view(torch.uint8).numpy().data)
        key = digest.digest()
        found = self._kept.get(key)
        if found is None:
            found = compute(pixels)
            self._kept.put(key, found)
        return found


_latest: KeptFeatures | None = None


@contextmanager
def kept_features(model: Any, sites: Sequence[LaneSite]) -> Iterator[None]:
    """While it lasts, ``model`` remembers the image tokens that it computes, if they cannot change.

    Nothing happens for other families, factors inside tower or projector, or a base on a GPU, where the pass over a
    whole batch is cheap and many passes over one image are not.

    Args:
        model: the bare base, whose parameters stay as they are.
        sites: the adapted layers.
    """
    global _latest
    config = getattr(model, "config", None)
    adapted = any(part in f".{site.path}.".split(".") for site in sites for part in _FROZEN)
    parameter = next(iter(model.parameters()))
    if getattr(config, "model_type", "") != _FAMILY or adapted or parameter.device.type != "cpu":
        yield
        return
    if _latest is None or not _latest.belongs_to(model):
        _latest = KeptFeatures(model)
    model.get_image_features = _latest
    try:
        yield
    finally:
        del model.get_image_features
