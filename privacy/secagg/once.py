"""What may happen once only, also across restarts: sending a masked vector, confirming, revealing shares.

A sealed round state can be restored twice (a message is delivered twice, a process is started again), and two
answers in one round could open an input. A guard remembers what was done outside that state.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Protocol

from umbel.errors import SecAggError
from umbel.files import fsync_folder


class OnceGuard(Protocol):
    """Claims that never succeed twice."""

    def claim(self, context: bytes, id: int, step: str) -> bool:
        """True the first time these three are given, False ever after. Atomic."""
        ...


class MemoryGuard:
    """Remembers within one process: enough where a client lives in one process for the whole round."""

    def __init__(self) -> None:
        self._claimed: set[tuple[bytes, int, str]] = set()
        self._lock = threading.Lock()

    def claim(self, context: bytes, id: int, step: str) -> bool:
        """See :meth:`OnceGuard.claim`."""
        with self._lock:
            key = (context, id, step)
            if key in self._claimed:
                return False
            self._claimed.add(key)
            return True


class FileGuard:
    """Remembers in a folder, one empty file a claim, for every process of this machine.

    Files may be deleted once the run is over: contexts never come back.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def claim(self, context: bytes, id: int, step: str) -> bool:
        """See :meth:`OnceGuard.claim`; durable before it returns.

        Raises:
            SecAggError: the folder cannot be written: then nothing may be sent.
        """
        name = hashlib.sha256(context + id.to_bytes(8, "big") + step.encode()).hexdigest()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                return False
            fsync_folder(self._folder)
        except OSError as error:
            raise SecAggError(
                f"{self._folder} cannot be written ({error.strerror}), so it cannot be recorded that an input is sent "
                "once only: free some space or choose another folder."
            ) from None
        return True
