"""What came with a run: the hash of a bundle's files, and whether it carries code.

The courier states it and the agent checks it against what the site approved. A bundle without code cannot lie, because
then the courier is the site's own installation; one with code could, which is why nothing but this one rule rests on
the statement: data, budget, masks and noise are the agent's in any case.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from umbel.errors import SiteError

_INERT = frozenset({".toml", ".md", ".json", ".jsonl", ".yaml", ".yml", ".txt"})
_APP = "pyproject.toml"
_FLOWER_S = ".info/CONTENT"
_OWN = frozenset(
    (
        "client.client_app:app",
        "coordinator.server_app:app",
        "simulations.client_app:app",
        "simulations.server_app:app",
    )
)
_MAX_FILES = 10_000
_MAX_FILE = 64 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds: ``hash`` over all its files, 64 hexadecimal digits or "" for no bundle; code or none."""

    hash: str = ""
    code: bool = False


def read_bundle(path: Path) -> Bundle:
    """The bundle in a folder (as Flower unpacked it) or in a ``.fab`` file; the two give the same hash.

    Whatever Python might import is code, and so is an app that ``pyproject.toml`` names and umbel does not bring
    along: it may lie anywhere on the machine. Flower's own list of files, ``.info/CONTENT``, is no part of a bundle,
    and neither is, in a folder, what Python compiled of a source that is there itself.

    Raises:
        SiteError: the path is neither, holds links, or is too large to be a bundle.
    """
    digest, code = hashlib.sha256(), False
    for count, (name, content) in enumerate(_files(path), start=1):
        if count > _MAX_FILES:
            raise SiteError(f"{path} holds more than {_MAX_FILES} files: give the folder of one bundle.")
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        code = code or not _inert(name) or (name == _APP and not _runs_umbel(content))
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
            for name in _names(path):
                _check_size(path, (path / name).stat().st_size)
                yield name, (path / name).read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/") and name != _FLOWER_S:
                    _check_size(path, archive.getinfo(name).file_size)
                    yield name, archive.read(name)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise SiteError(f"{path} is no bundle ({error}): give a .fab file or the folder it was unpacked to.") from None


def _check_size(path: Path, size: int) -> None:
    if size > _MAX_FILE:
        raise SiteError(f"A file in {path} has {size} bytes: give the folder of one bundle.")


def _names(folder: Path) -> list[str]:
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():  # behind it anything may lie, today or tomorrow
            raise SiteError(f"{folder} holds the link {name}: give the folder of one bundle, without links.")
        if path.is_file() and name != _FLOWER_S:
            found.add(name)
    return sorted(name for name in found if not _compiled_from(name, found))


def _compiled_from(name: str, names: Set[str]) -> bool:
    """Python writes these while it runs a bundle, whose hash must stay; the source makes it one with code anyhow."""
    path = PurePosixPath(name)
    source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
    return path.parent.name == "__pycache__" and path.suffix == ".pyc" and source.as_posix() in names


def _inert(name: str) -> bool:
    path = PurePosixPath(name)
    known = path.suffix.lower() in _INERT or path.name == "LICENSE"
    return known and not {"__pycache__", ".info"} & set(path.parts)


def _runs_umbel(project: bytes) -> bool:
    """Whether every app that Flower would start is umbel's own."""
    try:
        found: object = tomllib.loads(project.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    for key in ("tool", "flwr", "app", "components"):
        found = found.get(key, {}) if isinstance(found, dict) else None
    return isinstance(found, dict) and all(isinstance(app, str) and app in _OWN for app in found.values())
