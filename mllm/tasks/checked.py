"""CheckedImages: every image is decoded once, and never again while its file stays the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from types import TracebackType

from mllm.tasks.example import ImageSource
from umbel.errors import DataError, UmbelError
from umbel.files import write_atomic
from umbel.paths import home


class CheckedImages:
    """Remembers, under ``UMBEL_HOME/checked``, which images of a folder were decoded to the end.

    Only good images are remembered, by name, size and time of change in nanoseconds. The memory is a
    convenience: if it is lost, damaged or cannot be written, images are decoded again. Use as a context
    manager; leaving it writes what was learnt, also when a bad image ended the walk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = home() / "checked" / f"{hashlib.sha256(str(root).encode()).hexdigest()[:32]}.json"
        self._known: dict[str, list[int]] = {}
        self._seen: dict[str, list[int]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self._file.read_text("utf-8"))
            if isinstance(known, dict):
                self._known = known

    def check(self, source: ImageSource) -> None:
        """Decodes the image unless it is known to be good.

        Raises:
            DataError: as :meth:`ImageSource.open`.
        """
        name = source.path.relative_to(self._root).as_posix() + source.part
        if name in self._seen:
            return
        try:
            status = source.path.stat()
        except OSError:
            source.open()  # raises the sentence that fits
            raise DataError(f"Image {source.path} ({source.origin}) cannot be read: make it readable.") from None
        stamp = [status.st_size, status.st_mtime_ns]
        if self._known.get(name) != stamp:
            source.open()
        self._seen[name] = stamp

    def sizes(self) -> list[bytes]:
        """Name and size of every good image met, sorted: a cheap stand-in for the content."""
        return [f"{name}\0{stamp[0]}".encode() for name, stamp in sorted(self._seen.items())]

    def __enter__(self) -> CheckedImages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if any(self._known.get(name) != stamp for name, stamp in self._seen.items()):
            with contextlib.suppress(UmbelError):
                write_atomic(self._file, json.dumps({**self._known, **self._seen}).encode(), mode=0o600)
