"""Shelf: what each virtual device remembers from message to message, kept at the driver.

An actor may die at any moment; a device's memory must not die with it, nor change before its answer counts. Small
states stay in memory, larger ones go to files in a temporary folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

_SMALL = 1 << 16


class Shelf:
    """Bytes by node; a context manager that removes its folder.

    Args:
        folder: where larger states go; a temporary folder by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._small: dict[int, bytes] = {}
        self._files: set[int] = set()
        self._own = tempfile.TemporaryDirectory(prefix="umbel-devices-") if folder is None else None
        self._folder = Path(self._own.name) if self._own else folder or Path()

    def get(self, node: int) -> bytes:
        """What ``node`` remembers; empty when nothing."""
        if node in self._files:
            return self._path(node).read_bytes()
        return self._small.get(node, b"")

    def put(self, node: int, state: bytes) -> None:
        """Replaces it."""
        if len(state) <= _SMALL:
            self._small[node] = state
            if node in self._files:
                self._files.remove(node)
                self._path(node).unlink(missing_ok=True)
            return
        self._small.pop(node, None)
        self._path(node).write_bytes(state)
        self._files.add(node)

    def close(self) -> None:
        """Forgets everything. May be called twice."""
        self._small.clear()
        self._files.clear()
        if self._own is not None:
            self._own.cleanup()

    def _path(self, node: int) -> Path:
        return self._folder / f"{node}.state"
