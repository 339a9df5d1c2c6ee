"""The archive of a backup: a tar with a manifest of sizes and SHA-256 hashes, checked whole before anything is used."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from umbel import __version__
from umbel.errors import DeployError
from umbel.files import fsync_folder

Kind = Literal["ledger", "log", "database"]
FORMAT = 1
MANIFEST = "manifest.json"
LARGEST = 16 << 30
_MANIFEST_LARGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a backup. ``name`` is relative to the root that was backed up, with forward slashes."""

    name: str
    kind: Kind
    size: int
    sha256: str


def write_archive(path: Path, files: Mapping[str, tuple[Kind, bytes]]) -> None:
    """Writes a new archive, 0600, synced and whole, or none at all.

    Raises:
        DeployError: there is a file of that name, or it cannot be written.
    """
    members = [
        Member(name, kind, len(data), hashlib.sha256(data).hexdigest()) for name, (kind, data) in sorted(files.items())
    ]
    head = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "umbel": __version__,
        "files": [asdict(member) for member in members],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    _add(archive, MANIFEST, json.dumps(head, indent=1).encode())
                    for member in members:
                        _add(archive, member.name, files[member.name][1])
                stream.flush()
                os.fsync(stream.fileno())
            os.link(name, path)  # refuses an existing file, unlike a rename
        finally:
            Path(name).unlink(missing_ok=True)
        fsync_folder(path.parent)
    except FileExistsError:
        raise DeployError(f"{path} exists already: give another name, an older backup is never overwritten.") from None
    except OSError as error:
        raise DeployError(f"{path} cannot be written ({error.strerror}): choose a folder with room.") from None


def read_archive(path: Path) -> dict[str, tuple[Kind, bytes]]:
    """Every file of an archive by name, after all of it was checked.

    Raises:
        DeployError: it is no backup, is newer than this software, or one byte of it has changed.
    """
    try:
        with tarfile.open(path, mode="r:") as archive:
            members = _manifest(path, _extract(archive, MANIFEST, _MANIFEST_LARGEST))
            found = {}
            for member in members:
                data = _extract(archive, member.name, member.size)
                if len(data) != member.size or hashlib.sha256(data).hexdigest() != member.sha256:
                    raise DeployError(f"{member.name} in {path} is not what was backed up: use another backup.")
                found[member.name] = (member.kind, data)
    except FileNotFoundError:
        raise DeployError(f"There is no backup at {path}: give the file that 'umbel backup' wrote.") from None
    except PermissionError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}): run this as the user who may read it.") from None
    except (OSError, tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise DeployError(f"{path} is no whole backup of umbel ({error}): use another backup.") from None
    return found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    archive.addfile(info, io.BytesIO(data))


def _extract(archive: tarfile.TarFile, name: str, largest: int) -> bytes:
    info = archive.getmember(name)
    stream = archive.extractfile(info) if info.isfile() else None
    if stream is None or info.size > largest:
        raise ValueError(f"{name} is no plain file of its size")
    return stream.read()


def _manifest(path: Path, data: bytes) -> list[Member]:
    body = json.loads(data)
    if body["format"] > FORMAT:
        raise DeployError(
            f"{path} has format {body['format']}, this version of umbel reads up to {FORMAT}: update umbel."
        )
    members = [Member(**entry) for entry in body["files"]]
    for member in members:
        pure = PurePosixPath(member.name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in member.name or not pure.parts:
            raise DeployError(f"{path} holds the name {member.name!r}, which leads elsewhere: do not use it.")
        if member.kind not in ("ledger", "log", "database") or not 0 <= member.size <= LARGEST:
            raise ValueError(f"{member.name} has no known kind")
    return members
