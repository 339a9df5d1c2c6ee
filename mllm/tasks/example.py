"""Example: one question about zero or more images, with its answer; ImageSource: an image not yet opened."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from umbel.errors import DataError

MAX_PIXELS = 40_000_000
"""Default limit: 40 megapixels, 120 MB decoded. A small file can declare far more (a decompression bomb)."""


class _Decoded:
    """Small decoded images by path, until a budget of bytes is spent; then nothing more is kept.

    Never evicts: a set that does not fit would otherwise be decoded again and again anyway, and a
    set that fits (easy-VQA: 61 MB) is decoded once a process.
    """

    def __init__(self, budget: int, largest: int) -> None:
        self._budget, self._largest = budget, largest
        self._images: dict[Path, Image.Image] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> Image.Image | None:
        return self._images.get(path)

    def put(self, path: Path, image: Image.Image) -> None:
        size = image.width * image.height * 3
        if size > self._largest:
            return
        with self._lock:
            if path not in self._images and size <= self._budget:
                self._budget -= size
                self._images[path] = image


_decoded = _Decoded(budget=128 * 1024 * 1024, largest=128 * 128 * 3)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image file that is opened only when it is needed.

    Attributes:
        path: the file.
        origin: where it was named, for messages ("train.jsonl, line 7").
        max_pixels: width x height that the file's header may declare at most.
        keep: the file does not change while this process lives, so that a small decoded image may be kept.
    """

    path: Path
    origin: str = ""
    max_pixels: int = MAX_PIXELS
    keep: bool = False

    @property
    def part(self) -> str:
        """Tells sources of one file apart; "" where the file is the image."""
        return ""

    def open(self) -> Image.Image:
        """The decoded image, mode RGB. Treat it as read-only: small images of a fixed set are shared.

        Transparency is laid on white; 16-bit and floating-point greyscale are scaled to their own range.

        Raises:
            DataError: the file is missing, is no image, is truncated, or declares more than ``max_pixels``;
                the message names the file and where it was named.
        """
        kept = _decoded.get(self.path) if self.keep else None
        if kept is not None:
            return kept
        with decoding(self.named(), self.path):
            with warnings.catch_warnings():
                # Our own limit below is checked on the header, before a pixel is decoded.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = Image.open(self.path)
            with opened:
                if opened.width * opened.height > self.max_pixels:
                    raise DataError(
                        f"{self.named()} declares {opened.width} x {opened.height} pixels, expected at most "
                        f"{self.max_pixels}: scale the image down."
                    )
                image = rgb(opened)
        if self.keep:
            _decoded.put(self.path, image)
        return image

    def named(self) -> str:
        """The file and where it was named, for messages."""
        return f"Image {self.path}" + (f" ({self.origin})" if self.origin else "")


@contextmanager
def decoding(named: str, path: Path, expected: str = "an image that Pillow reads") -> Iterator[None]:
    """Turns whatever Pillow raises inside into one sentence about the file at ``path``, which messages call ``named``.

    Raises:
        DataError: the file is missing, or is not what was expected.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{named} does not exist: add the file or remove the line.") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = str(error).replace(str(path), "the file").strip(".") or type(error).__name__
        raise DataError(
            f"{named} cannot be decoded ({reason}): expected {expected}, replace the file or remove the line."
        ) from None


def rgb(image: Image.Image) -> Image.Image:
    """The image, or the frame that it stands at, in mode RGB: transparency on white, wide values scaled."""
    if image.mode in {"I", "I;16", "I;16B", "I;16L", "F"}:
        # Plain convert("RGB") would clip a 16-bit X-ray to white.
        wide = image.convert("F")
        low, high = wide.getextrema()
        if not (isinstance(low, float) and isinstance(high, float)):
            raise ValueError("its pixel values cannot be read")
        scale = 255.0 / (high - low) if high > low else 0.0
        return wide.point(lambda value: value * scale + (-low * scale)).convert("L").convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True, slots=True)
class Example:
    """One question, its images and its answer. ``meta`` holds everything else that the data set says."""

    images: tuple[ImageSource, ...]
    question: str
    answer: str
    meta: dict[str, str] = field(default_factory=dict)


def question_type(example: Example) -> str:
    """The group of a question for accuracy by type: ``meta["type"]``, else the question's first two words."""
    named = example.meta.get("type")
    if named:
        return named
    return " ".join(example.question.lower().split()[:2]) or "(empty)"
