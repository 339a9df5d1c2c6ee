"""Shelf: what each virtual device remembers from message to message, kept at the driver.

An actor may die at any moment; a device's memory must not die with it, nor change before its answer counts. States
stay in memory up to a budget, further ones go to files in a temporary folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

_BUDGET = 512 << 20


class Shelf:
    """Bytes by node.

    Args:
        budget: bytes that may stay in memory.
    """

    def __init__(self, budget: int = _BUDGET) -> None:
        self._budget = budget
        self._held: dict[int, bytes] = {}
        self._size = 0
        self._files: set[int] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, node: int) -> bytes:
        """What ``node`` remembers; empty when nothing."""
        return self._path(node).read_bytes() if node in self._files else self._held.get(node, b"")

    def put(self, node: int, state: bytes) -> None:
        """Replaces it."""
        self._size -= len(self._held.pop(node, b""))
        if self._size + len(state) <= self._budget:
            self._held[node] = state
            self._size += len(state)
            if node in self._files:
                self._files.remove(node)
                self._path(node).unlink(missing_ok=True)
            return
        self._path(node).write_bytes(state)
        self._files.add(node)

    def close(self) -> None:
        """Forgets everything. May be called twice."""
        self._held.clear()
        self._files.clear()
        self._size = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _path(self, node: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="umbel-devices-")
        return Path(self._folder.name) / f"{node}.state"
