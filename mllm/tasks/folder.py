"""A folder of one's own data: ``train.jsonl`` and ``eval.jsonl`` beside their images.

Each line is ``{"image": "a.png" | ["a.png", "b.png"] | null, "question": "...", "answer": "..."}``, or has ``video``
in place of ``image``: an animated file, a folder of frames, or a list of frames, of which ``task.frames`` are taken at
even distances. Other keys are kept in ``meta`` as text. Lines are found by offset and parsed when asked for; only the
offsets, eight bytes a line, stay in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm.tasks.base import ExampleSet, Task, fingerprint_of
from mllm.tasks.checked import CheckedImages
from mllm.tasks.example import Example, ImageSource
from mllm.video import MAX_FRAMES, FrameSource, frame_sources, spread
from umbel.config import TaskConfig
from umbel.config.task import FRAMES
from umbel.errors import DataError

MAX_LINE = 1_000_000
"""Longest line in bytes."""

_FIELDS = frozenset({"image", "video", "question", "answer"})


def load(config: TaskConfig) -> Task:
    """Reads the folder ``config.data``.

    Every line is parsed and every image decoded once; which images were found good is remembered under
    ``UMBEL_HOME`` by name, size and time of change, so that later loads only look at the files' dates.

    Raises:
        DataError: the folder or a split is missing or empty, or, with ``bad-lines`` "refuse", a line is not
            JSON, lacks a field, leads outside the folder, or names an image that is missing, corrupt or too
            large. The message names file and line. With "skip" such lines are left out and listed in
            ``Task.skipped``.
    """
    root = Path(config.data).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder: set task.data to the directory that holds train.jsonl and eval.jsonl."
        )
    root = root.resolve()
    skipped: list[str] = []

    def bad(sentence: str) -> None:
        if config.bad_lines == "refuse":
            raise DataError(f'{sentence.rstrip(".")}, or set task.bad-lines to "skip".')
        skipped.append(sentence)

    with CheckedImages(root) as images:
        train, evaluation = (_index(root, name, images, bad, config.frames) for name in ("train.jsonl", "eval.jsonl"))
        fingerprint = fingerprint_of(
            [*((root / name).read_bytes() for name in ("train.jsonl", "eval.jsonl")), *images.sizes()]
        )
    return Task(
        name="folder",
        config=config,
        train=train,
        evaluation={"eval": evaluation},
        headline="eval",
        fingerprint=fingerprint,
        skipped=skipped,
    )


class JsonLines(ExampleSet):
    """The good lines of one split, parsed when asked for."""

    def __init__(
        self,
        root: Path,
        file: Path,
        offsets: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.int64],
        frames: int = FRAMES,
    ) -> None:
        self._root, self._file, self._offsets, self._numbers = root, file, offsets, numbers
        self._frames = frames

    def __len__(self) -> int:
        return len(self._offsets)

    def _get(self, index: int) -> Example:
        number = int(self._numbers[index])
        try:
            with self._file.open("rb") as stream:
                stream.seek(int(self._offsets[index]))
                line = stream.readline(MAX_LINE + 1)
        except OSError as error:
            raise DataError(f"{self._file} cannot be read any more ({error.strerror}): put the file back.") from None
        return _parsed(self._root, self._file.name, number, line, self._frames)

    def __iter__(self) -> Iterator[Example]:
        # In order and with one open file: what the partitioners walk through.
        try:
            with self._file.open("rb") as stream:
                for offset, number in zip(self._offsets, self._numbers, strict=True):
                    stream.seek(int(offset))
                    line = stream.readline(MAX_LINE + 1)
                    yield parse(self._root, self._file.name, int(number), line, self._frames)
        except OSError as error:
            raise DataError(f"{self._file} cannot be read any more ({error.strerror}): put the file back.") from None


def _index(root: Path, name: str, images: CheckedImages, bad: Callable[[str], None], frames: int) -> JsonLines:
    file = root / name
    if not file.is_file():
        raise DataError(f"{file} does not exist: a data folder holds train.jsonl and eval.jsonl.")
    offsets: list[int] = []
    numbers: list[int] = []
    number = blank = 0
    try:
        with file.open("rb") as stream:
            while True:
                offset = stream.tell()
                line = stream.readline(MAX_LINE + 1)
                if not line:
                    break
                number += 1
                rest = line
                while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
                    rest = stream.readline(MAX_LINE + 1)  # walk over the tail of a line that is too long
                if not line.strip():
                    blank += 1
                    continue
                try:
                    for source in parse(root, name, number, line, frames).images:
                        images.check(source)
                except DataError as error:
                    bad(str(error))
                    continue
                offsets.append(offset)
                numbers.append(number)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable.") from None
    if not offsets:
        raise DataError(f"{file} has no usable line ({number - blank} were skipped, {blank} are blank): add examples.")
    return JsonLines(root, file, np.array(offsets, dtype=np.int64), np.array(numbers, dtype=np.int64), frames)


def parse(root: Path, name: str, number: int, line: bytes, frames: int = FRAMES) -> Example:
    """Reads one line; images are not opened, and of a video's file the header alone.

    Args:
        root: the data folder, resolved; image names are relative to it.
        name: of the file, for messages.
        number: of the line, from 1.
        line: its bytes, UTF-8; an end of line is allowed.
        frames: most of a video.

    Raises:
        DataError: the line is not such an object, a name leads outside ``root``, or a video is missing or too large.
    """
    where = f"{name}, line {number}"
    if len(line) > MAX_LINE:
        raise DataError(f"{where} is longer than {MAX_LINE} bytes: shorten it.")
    try:
        # A byte-order mark is what a Windows editor leaves at the start of the file.
        body = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise DataError(f"{where} is not JSON in UTF-8 ({reason}): write one object a line.") from None
    if not isinstance(body, dict):
        raise DataError(f"{where} holds a {type(body).__name__}, expected an object: write {{...}} on each line.")
    for field in ("question", "answer"):
        if not isinstance(body.get(field), str) or not body[field].strip():
            raise DataError(f"{where} has no {field!r}: expected a text that is not empty, add it.")
    return Example(
        images=_sources(root, where, body, frames),
        question=body["question"].strip(),
        answer=body["answer"].strip(),
        meta={str(key): _text(value) for key, value in body.items() if key not in _FIELDS},
    )


_parsed = lru_cache(maxsize=1 << 14)(parse)
"""A client asks for its few lines again and again. What a link points to is settled when its line is first read."""


def _sources(root: Path, where: str, body: dict[str, Any], frames: int) -> tuple[ImageSource, ...]:
    video = body.get("video")
    if video is None:
        return tuple(_source(root, where, name) for name in _names(where, "image", body.get("image")))
    if body.get("image") is not None:
        raise DataError(f"{where} has both 'image' and 'video': keep one of the two.")
    if not isinstance(video, str):
        names = _names(where, "video", video)
        if not 0 < len(names) <= MAX_FRAMES:
            raise DataError(f"{where} has a 'video' of {len(names)} frames, expected 1 to {MAX_FRAMES}: correct it.")
        return tuple(_source(root, where, name) for name in spread(names, frames))
    found = frame_sources(_source(root, where, video).path, frames, where)
    # A folder's entries may be links of their own.
    return tuple(s if isinstance(s, FrameSource) else _source(root, where, str(s.path)) for s in found)


def _names(where: str, key: str, value: Any) -> list[str]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise DataError(f"{where} has {_A[key]} that is neither a file name nor a list of them: correct it.")
    return names


_A = {"image": "an 'image'", "video": "a 'video'"}


def _source(root: Path, where: str, name: str) -> ImageSource:
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):
        raise DataError(f"{where} names the image {name!r}, which is no file name: correct it.") from None
    # Resolved first: neither "..", an absolute name nor a link may reach a file that the folder does not hold.
    if not path.is_relative_to(root):
        raise DataError(f"{where} names the image {name!r} outside the data folder: move it into {root}.")
    return ImageSource(path, origin=where)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
