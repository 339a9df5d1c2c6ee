"""PIL images to normalised pixels, with numpy alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from umbel.errors import ModelError


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How an image becomes the encoder's input.

    Attributes:
        size: pixels a side.
        mean, std: per channel, on pixels scaled to [0, 1].
        fit: ``stretch`` to the square, ``pad`` the shorter side with the mean colour (LLaVA-1.5), or ``crop``
            the middle after resizing the shorter side.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: Literal["stretch", "pad", "crop"] = "stretch"

    def __post_init__(self) -> None:
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError(
                f"Image options size={self.size}, mean={self.mean}, std={self.std} cannot be used: give a positive "
                "size, three means and three positive standard deviations."
            )
        if self.fit not in ("stretch", "pad", "crop"):
            raise ModelError(f"Image option fit={self.fit!r} is unknown: choose stretch, pad or crop.")

    def to_dict(self) -> dict[str, Any]:
        """For the processor's JSON file."""
        return asdict(self)

    def pixels(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """One image, of any mode and size, as normalised float32 [3, size, size]."""
        rgb = self._fit(image.convert("RGB"))
        values = np.asarray(rgb, dtype=np.float32) / np.float32(255)
        normal = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def _fit(self, image: Image.Image) -> Image.Image:
        size, (width, height) = self.size, image.size
        if width == height or self.fit == "stretch":
            return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
        factor = size / (max(width, height) if self.fit == "pad" else min(width, height))
        resized = image.resize(
            (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BICUBIC
        )
        left, top = (size - resized.width) // 2, (size - resized.height) // 2
        if self.fit == "crop":
            return resized.crop((-left, -top, size - left, size - top))
        red, green, blue = (round(255 * m) for m in self.mean)
        canvas = Image.new("RGB", (size, size), (red, green, blue))
        canvas.paste(resized, (left, top))
        return canvas
