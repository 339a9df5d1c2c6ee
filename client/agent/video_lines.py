"""Whether a data folder holds lines with ``video``, a field that no option of a run names: only the lines tell."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from umbel.errors import DataError

FIELD = "video"


def has_videos(root: Path) -> bool:
    """Whether a line of ``train.jsonl`` has a video; read once, and again when the file has changed.

    Raises:
        DataError: the file cannot be read.
    """
    path = root / "train.jsonl"
    try:
        found = path.stat()
        return _looked(path, found.st_mtime_ns, found.st_size, found.st_ino)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable to the site.") from None


@lru_cache(maxsize=16)
def _looked(path: Path, changed: int, size: int, inode: int) -> bool:
    del changed, size, inode  # they are in the key, so that a changed file is read again
    with path.open("rb") as stream:
        return any(_names_video(line) for line in stream)


def _names_video(line: bytes) -> bool:
    # Few lines are parsed: the field's name stands in the bytes, or is written with escapes.
    if b'"video"' not in line and b"\\u" not in line:
        return False
    try:
        body = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False  # the task refuses or skips such a line
    return isinstance(body, dict) and body.get(FIELD) is not None
