"""Blobs: the files of all releases by their SHA-256, written once. No name from a request ever becomes a path."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from umbel.errors import DeployError
from umbel.files import fsync_folder

_BLOCK = 1 << 20


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 in hexadecimal, and bytes.

    Raises:
        DeployError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}): check the disk.") from None
    return digest.hexdigest(), size


class Blobs:
    """A folder of files named by their hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would lie."""
        return self.folder / sha256[:2] / sha256

    def add(self, source: Path) -> tuple[str, int]:
        """Copies ``source`` in, unless its content is there; returns hash and size of what was stored.

        Raises:
            DeployError: it cannot be read, or nothing can be written.
        """
        temporary: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".new.")
            digest, size = hashlib.sha256(), 0
            with os.fdopen(descriptor, "wb") as stream, source.open("rb") as reader:
                while block := reader.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
                    stream.write(block)
                stream.flush()
                os.fchmod(stream.fileno(), 0o644)
                os.fsync(stream.fileno())
            target = self.path(digest.hexdigest())
            target.parent.mkdir(exist_ok=True)
            os.replace(temporary, target)
            temporary = None
            fsync_folder(target.parent)
        except OSError as error:
            raise DeployError(
                f"{source.name} cannot be stored in {self.folder} ({error.strerror}): free some space."
            ) from None
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
        return digest.hexdigest(), size

    def read(self, sha256: str, offset: int, block: int) -> Iterator[bytes]:
        """The blob's bytes from ``offset`` on, ``block`` at a time.

        Raises:
            DeployError: it is not there.
        """
        try:
            with self.path(sha256).open("rb") as stream:
                stream.seek(offset)
                while data := stream.read(block):
                    yield data
        except OSError:
            raise DeployError("A file of this release is not in the store: restore it from the backup.") from None
