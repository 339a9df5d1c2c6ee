"""Files of keys and certificates: bounded reads, and private ones only if nobody else may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from umbel.errors import DeployError

MAX_BYTES = 1 << 16
"""No key, certificate or chain of ours is larger."""


def read_private(path: Path) -> bytes:
    """The content of a private file.

    Refused is a file that others may read or write. As in PostgreSQL, its group may read it where root owns the file
    and this process is not root, which is how Kubernetes mounts secrets.

    Raises:
        DeployError: the file is missing, too large, not a plain file, or open to others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            _require_private(path, status)
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DeployError(
            f"The private key {path} cannot be read ({error.strerror}): give the folder that provisioning wrote."
        ) from None
    return _bounded(path, data, MAX_BYTES)


def read_public(path: Path) -> bytes:
    """The content of a small file that anybody may read: a certificate, a public key, a signature.

    Raises:
        DeployError: the file is missing or larger than 64 KiB.
    """
    return read_bounded(path, MAX_BYTES)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes; no more than that is ever read.

    Raises:
        DeployError: the file is missing or larger.
    """
    try:
        with path.open("rb") as stream:
            return _bounded(path, stream.read(limit + 1), limit)
    except OSError as error:
        raise DeployError(
            f"{path} cannot be read ({error.strerror}): give the file or folder that provisioning wrote."
        ) from None


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DeployError(f"The private key {path} is not a plain file: give the folder that provisioning wrote.")
    mounted = status.st_uid == 0 and os.geteuid() != 0
    open_to = stat.S_IMODE(status.st_mode) & (0o037 if mounted else 0o077)
    if open_to:
        raise DeployError(
            f"The private key {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): run chmod 600 on it, "
            "and replace the key if somebody else may have read it."
        )


def _bounded(path: Path, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise DeployError(f"{path} is larger than {limit} bytes: it is not what provisioning wrote.")
    return data
