"""What of a folder belongs into a backup. Whatever belongs there and cannot be copied whole is an error, never left
out: nobody looks for it before the day it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deploy.archive import Kind
from privacy.ledger.store import APPLICATION
from umbel.errors import DeployError

HEAD = "head.json"
SEGMENT = "audit-*.jsonl"
_SQLITE = b"SQLite format 3\0"
_LEDGERS = ("ledger.sqlite", "privacy.sqlite")
_SUPERLINK = "superlink.db"
"""Of Flower; any other ``*.db`` may be anybody's."""
_LINKS = (*_LEDGERS, "state", "log")
"""Names that services follow and a backup does not, so that a link of that name cannot be passed over."""


def files_below(root: Path) -> list[Path]:
    """Every plain file under ``root``, sorted.

    Raises:
        OSError: a folder cannot be read.
        DeployError: a ledger, a log or the folder of either is a link.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a service may remove a folder meanwhile
            raise error

    found = []
    for name, folders, files in os.walk(root, onerror=refuse):
        folder = Path(name)
        if "lost+found" in folders and folder == root:
            folders.remove("lost+found")  # a disk's own, which root alone may read
        for link in (folder / part for part in (*folders, *files) if (folder / part).is_symlink()):
            if link.name in _LINKS:
                raise DeployError(
                    f"{link} is a link, which a backup does not follow: back up the folder it leads to, or mount it "
                    "there."
                )
        found += [folder / part for part in files if not (folder / part).is_symlink() and (folder / part).is_file()]
    return sorted(found)


def logs_of(found: Sequence[Path]) -> list[Path]:
    """The folders of logs among ``found``.

    Raises:
        DeployError: one lacks its head or its lines.
    """
    lines = {path.parent for path in found if path.match(SEGMENT)}
    heads = {path.parent for path in found if path.name == HEAD}
    for folder in sorted(lines - heads):
        raise DeployError(f"The log {folder} lacks its {HEAD}: run 'umbel site log verify', and keep it as evidence.")
    for folder in sorted(heads - lines):
        if (folder.parent.name, folder.name) == ("state", "log"):  # a release has a head.json too
            raise DeployError(
                f"The log {folder} lacks its lines: run 'umbel site log verify', and restore the log from a backup."
            )
    return sorted(lines)


def databases_of(found: Sequence[Path]) -> list[tuple[Path, Kind]]:
    """The ledgers and other databases among ``found``.

    Raises:
        OSError: a file cannot be read.
        DeployError: a file that should be a database is none.
    """
    databases: list[tuple[Path, Kind]] = []
    for path in found:
        if path.suffix not in (".sqlite", ".db"):
            continue
        with path.open("rb") as stream:
            header = stream.read(72)
        if header.startswith(_SQLITE):
            ledger = path.name in _LEDGERS or int.from_bytes(header[68:72], "big") == APPLICATION
            databases.append((path, "ledger" if ledger else "database"))
        elif path.suffix == ".sqlite" or path.name == _SUPERLINK:
            raise DeployError(
                f"{path} is damaged, it is no database any more: keep it as evidence and restore it from the backup "
                "before this one."
            )
    return databases
