"""What came with a run: the hash of a bundle's files, and whether it carries code.

The courier states it and the agent checks it against what the site approved. A bundle without code cannot lie, because
then the courier is the site's own installation; one with code could, which is why nothing but this one rule rests on
the statement: data, budget, masks and noise are the agent's in any case.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from umbel.errors import SiteError

_INERT = frozenset({".toml", ".md", ".json", ".jsonl", ".yaml", ".yml", ".txt"})
_MAX_FILES = 10_000
_MAX_FILE = 64 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds: ``hash`` over all its files, 64 hexadecimal digits or "" for no bundle; code or none."""

    hash: str = ""
    code: bool = False


def read_bundle(path: Path) -> Bundle:
    """The bundle in a folder (as Flower unpacked it) or in a ``.fab`` file; the two give the same hash.

    Flower's own ``.info`` and compiled copies in ``__pycache__`` are no part of it.

    Raises:
        SiteError: the path is neither, or too large to be a bundle.
    """
    digest, code = hashlib.sha256(), False
    for count, (name, content) in enumerate(_files(path), start=1):
        if count > _MAX_FILES:
            raise SiteError(f"{path} holds more than {_MAX_FILES} files: give the folder of one bundle.")
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        code = code or not (Path(name).suffix.lower() in _INERT or Path(name).name == "LICENSE")
    return Bundle(digest.hexdigest(), code)


def running_bundle() -> Bundle:
    """The bundle that this process runs from, as Flower unpacked it; an empty one outside of Flower."""
    apps = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr").absolute() / "apps"
    for entry in sys.path:
        place = Path(entry)
        if entry and place.is_absolute() and apps in place.parents and place.is_dir():
            return read_bundle(place)
    return Bundle()


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
            for name in filter(_counts, names):
                _check_size(path, (path / name).stat().st_size)
                yield name, (path / name).read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for name in filter(_counts, sorted(archive.namelist())):
                if not name.endswith("/"):
                    _check_size(path, archive.getinfo(name).file_size)
                    yield name, archive.read(name)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise SiteError(f"{path} is no bundle ({error}): give a .fab file or the folder it was unpacked to.") from None


def _check_size(path: Path, size: int) -> None:
    if size > _MAX_FILE:
        raise SiteError(f"A file in {path} has {size} bytes: give the folder of one bundle.")


def _counts(name: str) -> bool:
    parts = name.split("/")
    return parts[0] != ".info" and "__pycache__" not in parts
