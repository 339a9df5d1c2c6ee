"""A video as frames: what a model of images sees of it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image

from mllm.tasks.example import MAX_PIXELS, ImageSource, decoding, rgb
from umbel.errors import DataError

_T = TypeVar("_T")

FORMATS = ("GIF", "WEBP", "PNG", "TIFF")
"""Animated or of several pages, as Pillow reads them; others need a decoder: write their frames to a folder first."""
_EXPECTED = "an animated GIF, WebP or PNG, a TIFF of several pages, or a folder of its frames"
MAX_FRAMES = 10_000
"""Most frames of a file, or files in a folder."""
MAX_BYTES = 256 * 1024 * 1024
"""Largest file: a GIF must be walked through to count its frames."""
MAX_DECODED = 100 * MAX_PIXELS
"""Most pixels that all frames of a file have together: later frames are made from earlier ones."""


@dataclass(frozen=True, slots=True)
class FrameSource(ImageSource):
    """One of the frames that are taken of a file.

    Attributes:
        frames: indices of all frames that are taken; they are decoded together, and the last file's are kept.
        number: which of ``frames`` this is.
    """

    frames: tuple[int, ...] = (0,)
    number: int = 0

    def named(self) -> str:
        """See ImageSource."""
        return f"Video {self.path}" + (f" ({self.origin})" if self.origin else "")

    @property
    def part(self) -> str:
        """Tells frames of one file apart."""
        return f"#{self.frames[self.number]}"

    def open(self) -> Image.Image:
        """The frame, mode RGB, treated as an image of its own. Read-only.

        Raises:
            DataError: as :meth:`ImageSource.open`.
        """
        with decoding(self.named(), self.path, _EXPECTED):
            status = self.path.stat()
            key = (self.path, self.frames, status.st_size, status.st_mtime_ns)
            return _held.get(key, lambda: self._decode())[self.number]

    def _decode(self) -> tuple[Image.Image, ...]:
        found = []
        with Image.open(self.path, formats=FORMATS) as video:
            for frame in self.frames:
                video.seek(frame)
                found.append(rgb(video))
        return tuple(found)


class _Held:
    """The decoded frames of one file: an example's frames are opened one after the other."""

    def __init__(self) -> None:
        self._key: object = None
        self._frames: tuple[Image.Image, ...] = ()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], tuple[Image.Image, ...]]) -> tuple[Image.Image, ...]:
        with self._lock:
            if self._key != key:
                self._key, self._frames = None, ()
                self._frames, self._key = make(), key
            return self._frames


_held = _Held()


def frame_sources(path: Path, count: int, origin: str = "") -> tuple[ImageSource, ...]:
    """Frames at even distances, first and last included, that are decoded when they are opened.

    Args:
        path: a file of :data:`FORMATS`, or a folder of images whose order is that of their names.
        count: frames to take, at least 1; one frame is the middle one. A shorter video gives all its frames.
        origin: where it was named, for messages.

    Raises:
        DataError: the video is missing, empty, too large or none, or ``count`` is below 1.
    """
    if count < 1:
        raise DataError(f"{count} frames were asked for, expected at least 1: raise the number.")
    named = f"Video {path}" + (f" ({origin})" if origin else "")
    with decoding(named, path, _EXPECTED):
        if path.is_dir():
            files = _listed(path, named)
            return tuple(ImageSource(file, origin=origin) for file in spread(files, count))
        status = path.stat()
        if status.st_size > MAX_BYTES:
            raise DataError(f"{named} has {status.st_size} bytes, expected at most {MAX_BYTES}: cut it.")
        total, pixels = _measured(path, status.st_size, status.st_mtime_ns)
    chosen = tuple(spread(range(total), count))
    for what, size, most in (
        ("frames", total, MAX_FRAMES),
        ("pixels in all its frames", total * pixels, MAX_DECODED),
        (f"pixels in the {len(chosen)} frames that are taken", len(chosen) * pixels, MAX_PIXELS),
    ):
        if size > most:
            raise DataError(f"{named} has {size} {what}, expected at most {most}: cut it or scale it down.")
    return tuple(FrameSource(path, origin, frames=chosen, number=number) for number in range(len(chosen)))


def sample_frames(path: str | Path, count: int) -> list[Image.Image]:
    """The frames of :func:`frame_sources` as RGB images.

    Raises:
        DataError: as there, or a frame cannot be decoded.
    """
    return [source.open() for source in frame_sources(Path(path), count)]


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """``count`` items at even distances, first and last included; the middle one, or all if there are fewer."""
    total = len(items)
    if count >= total:
        return list(items)
    if count == 1:
        return [items[total // 2]]
    return [items[round(index * (total - 1) / (count - 1))] for index in range(count)]


def _listed(folder: Path, named: str) -> list[Path]:
    known = Image.registered_extensions()
    files = []
    for file in folder.iterdir():
        if file.suffix.lower() in known and not file.name.startswith("."):
            files.append(file)
        if len(files) > MAX_FRAMES:
            raise DataError(f"{named} holds more than {MAX_FRAMES} frames: cut it.")
    if not files:
        raise DataError(f"{named} holds no frame: give a folder with images in it.")
    return sorted(files)


@lru_cache(maxsize=1 << 14)
def _measured(path: Path, _size: int, _changed: int) -> tuple[int, int]:
    """Frames and pixels of a frame, from the headers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as video:
            return int(getattr(video, "n_frames", 1)), video.width * video.height
