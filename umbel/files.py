"""Files: written so that a crash leaves the old content or the new, never half of either; and their hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from umbel.errors import RunError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal, read in pieces. Raises OSError when it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes ``data`` to a temporary file beside ``path``, syncs it and renames it over ``path``.

    Raises:
        RunError: the folder cannot be written or the disk is full; ``path`` is then unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}): free some space or choose a folder that you may write to."
        ) from None
