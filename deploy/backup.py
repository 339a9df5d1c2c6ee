"""Backup and restore of what a site or a coordinator must never lose: ledgers, the site's log, the registry.

A restore never lowers what was spent. A ledger that is there stays, and takes in what the backup booked and it did
not (:func:`privacy.ledger.absorb`); a damaged one is set aside and everything readable in it still counts. Where the
present ledger is gone or only partly readable, nobody can know what was spent since the backup, so the restore is
refused until a person says that this loss is accepted. A log is replaced only by one that goes on from it.

Keys are never in a backup: losing one costs an enrolment, leaking one costs the site its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.archive import Kind, read_archive, write_archive
from deploy.holdings import HEAD, SEGMENT, databases_of, files_below, logs_of
from privacy.ledger import Ledger
from privacy.ledger.absorb import absorb, salvage
from umbel.errors import DeployError
from umbel.files import fsync_folder, write_atomic


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of one file: ``action`` is kept, written, merged or replaced."""

    name: str
    kind: Kind
    action: str
    said: str


def back_up(root: Path, archive: Path) -> dict[str, Kind]:
    """Copies every ledger, log and database under ``root`` into a new archive; services may go on meanwhile.

    Databases are copied by SQLite's own online backup, so that the copy is one moment's content. A log's head is
    copied before its lines, so that the copy never lacks a line that its head names. What belongs into a backup and
    cannot be copied whole is an error, never left out: nobody looks for it before the day it is needed.

    Returns:
        Name to kind.

    Raises:
        DeployError: there is nothing to back up, the archive exists, a file or folder cannot be read, a database is
            none any more, or a log lacks its head or its lines.
        LedgerError: a ledger is damaged: a backup of it would replace a good one some day.
    """
    root = root.expanduser().absolute()
    if archive.expanduser().absolute().is_relative_to(root):
        raise DeployError(f"{archive} lies in the folder that is backed up: write it to another disk.")
    files: dict[str, tuple[Kind, bytes]] = {}
    try:
        if not root.is_dir():
            raise DeployError(f"{root} is no folder: give the folder of a site or of a coordinator.")
        found = files_below(root)
        for folder in logs_of(found):
            for path in (folder / HEAD, *sorted(folder.glob(SEGMENT))):
                files[path.relative_to(root).as_posix()] = ("log", path.read_bytes())
        for path, kind in databases_of(found):
            if kind == "ledger":
                with Ledger.open(path, create=False) as ledger:
                    ledger.verify()
            files[path.relative_to(root).as_posix()] = (kind, _snapshot(path))
    except (OSError, sqlite3.Error) as error:
        raise DeployError(f"{root} cannot be backed up ({error}): run this as the user of the service.") from None
    if not files:
        raise DeployError(f"{root} holds no ledger, log or registry: give the folder of a site or of a coordinator.")
    write_archive(archive, files)
    return {name: kind for name, (kind, _) in files.items()}


def restore(root: Path, archive: Path, *, accept_loss: bool = False) -> list[Restored]:
    """Puts a backup back under ``root``; the services that use it must be stopped.

    Everything is decided before anything is changed.

    Args:
        root: the folder that was backed up.
        archive: of :func:`back_up`.
        accept_loss: a person knows that what was spent between the backup and the loss of a ledger is not in any
            book, and has made up for it (for example by a smaller budget).

    Raises:
        DeployError: the backup is not whole, a ledger's spending since then would be forgotten, two logs differ, or
            this user may not read or write there.
    """
    root = root.expanduser().absolute()
    files = read_archive(archive.expanduser())
    try:
        for name in files:
            _require_access(root / name)
        return _put_back(root, archive, files, accept_loss=accept_loss)
    except OSError as error:
        raise DeployError(
            f"{error.filename or root} cannot be read or written ({error.strerror}): run this as the user of the "
            "service, with room on the disk."
        ) from None


def _put_back(
    root: Path, archive: Path, files: Mapping[str, tuple[Kind, bytes]], *, accept_loss: bool
) -> list[Restored]:
    made = _time(archive)
    ledgers = {name: data for name, (kind, data) in files.items() if kind == "ledger"}
    if not accept_loss:
        for name in ledgers:
            _require_known(root / name, made)
    logs = _log_decisions(root, files)
    done = [_restore_ledger(root / name, name, data) for name, data in ledgers.items()]
    done += [_restore_log(root, folder, files, longer=longer) for folder, longer in logs.items()]
    done += [_restore_database(root / name, name, data) for name, (kind, data) in files.items() if kind == "database"]
    return done


def _require_access(path: Path) -> None:
    """An unreadable ledger must not pass for a damaged one, nor half of a restore be done.

    Raises:
        OSError: this user may not read or write the file, or not make it.
    """
    place, wanted = path, os.R_OK | os.W_OK
    while not os.path.lexists(place):
        place, wanted = place.parent, os.W_OK | os.X_OK
    for part, needed in ((place, wanted), (place.parent, os.X_OK)):
        if not os.access(part, needed, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(part))


def _require_known(path: Path, made: str) -> None:
    found = salvage(path)
    if found.whole:
        return
    state = "is damaged" if path.exists() else "is gone"
    raise DeployError(
        f"The ledger {path} {state}, so what was spent after the backup of {made} is in no book: find a newer backup, "
        "or lower the data set's budget by what may have been spent and restore with --accept-loss."
    )


def _restore_ledger(path: Path, name: str, data: bytes) -> Restored:
    with _as_file(data) as copy:
        backed = salvage(copy)
        if not backed.whole:
            raise DeployError(f"The ledger {name} in the backup does not verify: use another backup.")
        present = salvage(path)
        if present.whole:
            added = absorb(path, backed.entries)
            action = "merged" if added else "kept"
            return Restored(name, "ledger", action, f"{added} lines of the backup were missing and are booked now")
        aside = _set_aside(path)
        _write(path, data)
        added = absorb(path, present.entries)
        said = f"from the backup, and {added} lines of the damaged file" if aside else "from the backup"
        return Restored(name, "ledger", "written", said)


def _log_decisions(root: Path, files: Mapping[str, tuple[Kind, bytes]]) -> dict[str, bool]:
    """Folder of each log: whether the backup's goes further than the present one."""
    folders = sorted({name.rpartition("/")[0] for name, (kind, _) in files.items() if kind == "log"})
    decided = {}
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        backed = _joined({name: data for name, (kind, data) in files.items() if kind == "log"}, prefix)
        try:
            present = b"".join(path.read_bytes() for path in sorted((root / folder).glob(SEGMENT)))
        except OSError as error:
            raise DeployError(
                f"The log {root / folder} cannot be read ({error.strerror}): run this as its owner."
            ) from None
        if present.startswith(backed):
            decided[folder] = False
        elif backed.startswith(present):
            decided[folder] = True
        else:
            raise DeployError(
                f"The log {root / folder} and the one in the backup differ in what both have: one of them was altered, "
                "so keep both as evidence and move the present folder away before you restore."
            )
    return decided


def _joined(files: Mapping[str, bytes], prefix: str) -> bytes:
    names = sorted(name for name in files if name.startswith(prefix + "audit-"))
    return b"".join(files[name] for name in names)


def _restore_log(root: Path, folder: str, files: Mapping[str, tuple[Kind, bytes]], *, longer: bool) -> Restored:
    if not longer and (root / folder / HEAD).is_file():
        return Restored(folder, "log", "kept", "it goes at least as far as the backup")
    prefix = f"{folder}/" if folder else ""
    for name in sorted(name for name in files if name.startswith(prefix) and files[name][0] == "log"):
        _write(root / name, files[name][1])  # audit-* sort before head.json: the head comes last
    return Restored(folder, "log", "written", "from the backup")


def _restore_database(path: Path, name: str, data: bytes) -> Restored:
    aside = _set_aside(path)
    _write(path, data)
    if aside is None:
        return Restored(name, "database", "written", "from the backup")
    return Restored(name, "database", "replaced", f"from the backup; the old one is {aside.name}")


def _set_aside(path: Path) -> Path | None:
    """Renames a file with SQLite's own beside it, so that nothing is lost; None where there is none."""
    if not path.exists():
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = path.with_name(f"{path.name}.before-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    fsync_folder(path.parent)
    return aside


def _write(path: Path, data: bytes) -> None:
    missing = []
    folder = path.parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700)  # as a site makes them: mkdir's own parents=True would open those between to others
    write_atomic(path, data, mode=0o600)


def _snapshot(path: Path) -> bytes:
    """One moment's content of a database that others may be writing."""
    with tempfile.TemporaryDirectory(prefix="umbel-backup-") as folder:
        copy = Path(folder) / "copy.sqlite"
        source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)
        target = sqlite3.connect(copy)
        try:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        finally:
            target.close()
            source.close()
        return copy.read_bytes()


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="umbel-restore-") as folder:
        path = Path(folder) / "ledger.sqlite"
        path.write_bytes(data)
        path.chmod(0o600)
        yield path


def _time(archive: Path) -> str:
    try:
        return datetime.fromtimestamp(archive.expanduser().stat().st_mtime, UTC).isoformat(timespec="minutes")
    except OSError:
        return "an unknown time"
