"""Incoming: one file on its way, resumed where it was cut off, and complete only when its hash is right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

from coordinator.release.manifest import ReleasedFile
from umbel.errors import DeployError

MAX_CHUNK_BYTES = 1 << 20
_BLOCK = 1 << 20


class Incoming:
    """Writes the chunks of one file to ``path``. Use as a context manager.

    What an earlier attempt left there is kept and hashed; it counts only if the whole file's hash is right in the end.

    Args:
        path: of the unfinished file.
        file: what the signed manifest says about it.
        what: how to call it in a message.

    Raises:
        DeployError: the disk refuses.
    """

    def __init__(self, path: Path, file: ReleasedFile, what: str) -> None:
        self._path, self._file, self._what = path, file, what
        self._digest = hashlib.sha256()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            self._stream = os.fdopen(descriptor, "r+b")
            if os.fstat(descriptor).st_size > file.size:
                self._stream.truncate(0)
            self.offset = 0
            while block := self._stream.read(_BLOCK):
                self._digest.update(block)
                self.offset += len(block)
        except OSError as error:
            raise DeployError(f"{path} cannot be written ({error.strerror}): choose another folder.") from None

    @property
    def missing(self) -> int:
        """Bytes that have not come yet."""
        return self._file.size - self.offset

    def add(self, offset: int, data: bytes) -> None:
        """Takes the next chunk.

        Raises:
            DeployError: it is not the next one, is empty or larger than 1 MiB, goes beyond the declared size, or the
                disk is full.
        """
        if offset != self.offset or not 0 < len(data) <= min(MAX_CHUNK_BYTES, self.missing):
            raise DeployError(
                f"The server sent {len(data)} bytes at {offset} of {self._what}, and at most "
                f"{min(MAX_CHUNK_BYTES, self.missing)} at {self.offset} were expected: fetch it again."
            )
        try:
            self._stream.write(data)
        except OSError as error:
            raise DeployError(
                f"{self._path} cannot be written ({error.strerror}): free some space; what has come is kept."
            ) from None
        self._digest.update(data)
        self.offset += len(data)

    def finish(self) -> None:
        """Syncs the complete file.

        Raises:
            DeployError: its content is not what was signed (the file is then removed), or bytes are missing.
        """
        if self.missing:
            raise DeployError(f"{self._what} broke off after {self.offset} of {self._file.size} bytes: fetch it again.")
        if self._digest.hexdigest() != self._file.sha256:
            self._path.unlink(missing_ok=True)
            raise DeployError(
                f"{self._what} is not the file that was signed (SHA-256 {self._digest.hexdigest()[:16]}, expected "
                f"{self._file.sha256[:16]}): it was altered on the way or at the server; it was discarded."
            )
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise DeployError(f"{self._path} cannot be written ({error.strerror}): free some space.") from None

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
        except OSError:
            return  # a full disk has been reported by add or finish
