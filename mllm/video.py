"""A video as frames: what a model of images sees of it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageSequence, UnidentifiedImageError

from umbel.errors import DataError


def sample_frames(path: str | Path, count: int) -> list[Image.Image]:
    """Frames of a video at even distances, first and last included, as RGB images in order.

    Args:
        path: an animated GIF, WebP, PNG or TIFF, or a folder of images whose order is that of their names. Other
            formats need a decoder: write their frames to a folder first.
        count: frames to take, at least 1; one frame is the middle one. A shorter video gives all its frames.

    Raises:
        DataError: the video is missing, empty or cannot be decoded, or ``count`` is below 1.
    """
    if count < 1:
        raise DataError(f"{count} frames were asked for, expected at least 1: raise the number.")
    place = Path(path)
    try:
        if place.is_dir():
            names = sorted(file for file in place.iterdir() if file.is_file())
            frames = [Image.open(names[index]).convert("RGB") for index in _spread(len(names), count)]
        else:
            with Image.open(place) as video:
                total = int(getattr(video, "n_frames", 1))
                wanted = set(_spread(total, count))
                frames = [
                    frame.convert("RGB") for index, frame in enumerate(ImageSequence.Iterator(video)) if index in wanted
                ]
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{place} cannot be read as a video ({type(error).__name__}): give an animated GIF, WebP or PNG, or a "
            "folder of its frames."
        ) from None
    if not frames:
        raise DataError(f"{place} holds no frame: give a folder with images in it.")
    return frames


def _spread(total: int, count: int) -> list[int]:
    if count >= total:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]
