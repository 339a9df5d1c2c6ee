"""What this machine has: memory that may be used, and the secret from which local keys are derived."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from umbel.errors import SiteError
from umbel.paths import home

_BYTES = 32
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_NAMES = (("memory.max", "memory.current", "file"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"))
"""Of a control group, version 2 and 1: files with the limit and the use, and memory.stat's entry for cached files."""


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


def memory_limit() -> tuple[int, int]:
    """Bytes of memory that this process may use in all, and that are available now.

    The least of what the machine has, what its control groups (a container's, a service's) allow and what its address
    space (``ulimit -v``) allows. Cached files give way, so they count as available.
    """
    found = psutil.virtual_memory()
    total, available = int(found.total), int(found.available)
    for limit, used in _limits():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def _limits() -> Iterator[tuple[int, int]]:
    """Bytes allowed and bytes used, of every limit that is set."""
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        yield space, int(psutil.Process().memory_info().vms)
    for folder in _cgroups():
        for limit, used, cached in _NAMES:
            try:
                allowed = (folder / limit).read_text(encoding="ascii").strip()
                taken = int((folder / used).read_text(encoding="ascii"))
                lines = (folder / "memory.stat").read_text(encoding="ascii").split("\n")
            except (OSError, ValueError):
                continue
            if allowed.isdigit():
                given_back = next((int(line.split()[1]) for line in lines if line.split(" ")[0] == cached), 0)
                yield int(allowed), max(0, taken - given_back)


def _cgroups() -> list[Path]:
    """Folders of this process's control groups and of all above them, whose limits hold as well."""
    found = [_CGROUPS, _CGROUPS / "memory"]
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, kinds, path = (*line.split(":", 2), "", "")[:3]
        if kinds not in ("", "memory"):
            continue
        root, steps = (_CGROUPS / kinds if kinds else _CGROUPS), Path(path.strip("/")).parts
        if ".." not in steps:
            found += [root.joinpath(*steps[:depth]) for depth in range(1, len(steps) + 1)]
    return found
