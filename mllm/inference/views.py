"""Views of an image for test-time augmentation: small crops and changes of brightness, never mirrored.

A mirrored image answers "what is on the left" with what is on the right, so flips are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance

from mllm.tasks.example import Example, ImageSource

_LEAST_SIDE = 0.88
_BRIGHTNESS = 0.1


@dataclass(frozen=True, slots=True)
class View(ImageSource):
    """An image source that changes what it opens. ``number`` 0 is the image itself; others differ by their number.

    ``inner`` is what is changed: an image, or a frame of a video."""

    number: int = 0
    seed: int = 0
    inner: ImageSource | None = None

    def open(self) -> Image.Image:
        """The view, mode RGB, of the image's own size: a crop of 88 to 100% a side, up to 10% darker or lighter."""
        image = ImageSource.open(self) if self.inner is None else self.inner.open()
        if self.number == 0:
            return image
        rng = np.random.default_rng((self.seed, self.number))
        side = rng.uniform(_LEAST_SIDE, 1.0)
        width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        cut = image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)
        return ImageEnhance.Brightness(cut).enhance(1 + rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))


def views(example: Example, count: int, seed: int) -> list[Example]:
    """``count`` examples that differ in their images' views; the first is the example itself. One without an image
    has one view."""
    if count == 1 or not example.images:
        return [example]
    made = []
    for number in range(count):
        sources = tuple(View(s.path, s.origin, s.max_pixels, False, number, seed, s) for s in example.images)
        made.append(replace(example, images=sources))
    return made
