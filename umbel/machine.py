"""The secret of this machine, from which local keys are derived."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from umbel.errors import SiteError
from umbel.paths import home

_BYTES = 32


@cache
def machine_secret(folder: Path | None = None) -> bytes:
    """32 random bytes, made once and kept in ``UMBEL_HOME/machine.key``, readable by the owner only.

    Raises:
        SiteError: the file cannot be written or does not hold 32 bytes, or others may read it.
    """
    path = (folder or home()) / "machine.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Linked into place whole, so that two processes that start together agree on one secret.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".machine.") as stream:
                stream.write(secrets.token_bytes(_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(stream.name, path)
        value = path.read_bytes()
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise SiteError(
            f"The key {path} cannot be used ({error.strerror}): set UMBEL_HOME to your own folder."
        ) from None
    if mode:
        raise SiteError(f"The key {path} is readable by others: run chmod 600 on it.")
    if len(value) != _BYTES:
        raise SiteError(f"The key {path} does not hold {_BYTES} bytes: delete it, a new one is made.")
    return value


def derived(purpose: str) -> bytes:
    """32 bytes for one purpose (HKDF-SHA256, RFC 5869), from the machine's secret."""
    return HKDF(SHA256(), _BYTES, None, b"umbel " + purpose.encode()).derive(machine_secret())
