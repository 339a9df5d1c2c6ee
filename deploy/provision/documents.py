"""A member's documents: roster, signers and their signatures, replaced all at once.

::

    identity/
    ├── roster.json, roster.sig, signers.json, signers.sig    links to current/
    ├── current                                               link to the set in force
    └── documents-XXXX/                                       the set

A document is worth nothing without its signature, and two files cannot be renamed in one step; one link can. A crash at
any point leaves the old set or the new one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.provision.keys import private_folder
from umbel.errors import DeployError
from umbel.files import fsync_folder, write_atomic

CURRENT = "current"
_SET = "documents-"


def write_documents(identity: Path, documents: Mapping[str, str]) -> None:
    """Puts ``documents`` (content by name) into ``identity``.

    Raises:
        DeployError: the folder cannot be written; the old set is in force then.
        RunError: the same, for a file.
    """
    private_folder(identity)
    try:
        present = {name: _read(identity / name) for name in documents}
        wanted = {name: text.encode() for name, text in documents.items()}
        linked = all(os.path.islink(identity / name) for name in documents)
        if present == wanted and linked:
            return
        if not linked:  # files of a person or of an earlier version become a set of their own first
            _switch(identity, _make(identity, {name: data for name, data in present.items() if data is not None}))
            for name in documents:
                _link(identity / name, f"{CURRENT}/{name}")
        _switch(identity, _make(identity, wanted))
        kept = os.readlink(identity / CURRENT)
        for folder in identity.glob(f"{_SET}*"):
            if folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DeployError(
            f"{identity} cannot be written ({error.strerror}): run this as the owner of the folder, with room on the "
            "disk."
        ) from None


def _make(identity: Path, documents: Mapping[str, bytes]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=_SET, dir=identity))
    for name, data in documents.items():
        write_atomic(folder / name, data)
    folder.chmod(0o755)  # nothing in it is secret; who may enter at all is said by the folder around it
    return folder


def _switch(identity: Path, folder: Path) -> None:
    _link(identity / CURRENT, folder.name)


def _link(path: Path, target: str) -> None:
    fresh = path.with_name(f".{path.name}.link")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, path)
    fsync_folder(path.parent)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
