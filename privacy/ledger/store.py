"""The chain of lines in SQLite: WAL, synced at every commit, append-only, verified as it is read."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from privacy.ledger.entry import GENESIS, Entry, link
from umbel.errors import LedgerError

SCHEMA = 1
APPLICATION = 0x756D626C  # "umbl"
_TABLES = """
CREATE TABLE line (number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL, hash TEXT NOT NULL) STRICT;
CREATE TRIGGER line_kept BEFORE DELETE ON line BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER line_fixed BEFORE UPDATE ON line BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


class Store:
    """Lines of one ledger file, shared safely by threads and processes.

    Each handle remembers how far it has read and verified; reading on checks only what is new. The head row
    holds number and hash of the last line, so that lines cut off at the end are noticed.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.entries: list[Entry] = []
        self.hash = GENESIS
        self._pid = os.getpid()
        if not create and not path.is_file():
            raise LedgerError(f"There is no ledger at {path}: give the path of a ledger file that exists.")
        self._connection = self._connect(create=create)
        try:
            with self.reading():
                pass
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; the handle cannot be used afterwards."""
        self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A consistent view; :attr:`entries` is up to date inside."""
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The only writer; :attr:`entries` is up to date inside, and what is appended is on disk afterwards."""
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    def append(self, entry: Entry) -> Entry:
        """Adds a line inside :meth:`writing`; returns it with its number."""
        entry = entry.numbered(len(self.entries) + 1)
        text = entry.to_json()
        digest = link(self.hash, text)
        self._connection.execute("INSERT INTO line VALUES (?, ?, ?)", (entry.number, text, digest))
        self._connection.execute("UPDATE head SET number = ?, hash = ? WHERE id = 1", (entry.number, digest))
        self.entries.append(entry)
        self.hash = digest
        return entry

    def reread(self) -> None:
        """Forgets what was verified, so that the next transaction verifies the whole chain."""
        with self.lock:
            self.entries.clear()
            self.hash = GENESIS

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self.lock:
            if os.getpid() != self._pid:
                # SQLite handles must not cross a fork.
                self._connection, self._pid = self._connect(create=False), os.getpid()
            known, digest = len(self.entries), self.hash
            try:
                self._connection.execute(begin)
                try:
                    self._catch_up()
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:
                    del self.entries[known:]
                    self.hash = digest
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.DatabaseError as error:
                raise _damaged(self.path, error) from None

    def _catch_up(self) -> None:
        rows = self._connection.execute(
            "SELECT number, body, hash FROM line WHERE number > ? ORDER BY number", (len(self.entries),)
        )
        for number, body, digest in rows:
            if number != len(self.entries) + 1 or link(self.hash, body) != digest:
                raise LedgerError(
                    f"Line {number} of the ledger {self.path} does not follow from the line before: it was altered or "
                    "damaged, so restore the file from a backup."
                )
            entry = Entry.from_json(body)
            if entry.number != number:
                raise LedgerError(f"Line {number} of the ledger {self.path} was moved: restore it from a backup.")
            self.entries.append(entry)
            self.hash = digest
        head = self._connection.execute("SELECT number, hash FROM head").fetchone()
        if head != (len(self.entries), self.hash):
            raise LedgerError(
                f"The ledger {self.path} has lost lines or had some altered: expected {head and head[0]} lines that "
                "end in the recorded hash, so restore the file from a backup."
            )

    def _connect(self, *, create: bool) -> sqlite3.Connection:
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(
                f"The ledger {self.path} cannot be opened ({error}): choose a folder that you may write to."
            ) from None
        try:
            self._prepare(connection, create=create)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise _damaged(self.path, error) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, *, create: bool) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        if create and self._version(connection) is None:
            # With a rollback journal: the file names itself a ledger as soon as it is one.
            connection.execute("BEGIN EXCLUSIVE")
            if self._version(connection) is None:  # another process may have been quicker
                for statement in _TABLES.strip().splitlines():
                    connection.execute(statement)
                connection.execute("INSERT INTO head VALUES (1, 0, ?)", (GENESIS,))
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute("COMMIT")
        version = self._version(connection)
        if version is None:
            raise LedgerError(f"The file {self.path} is no ledger of umbel: give the path of a ledger file.")
        if version > SCHEMA:
            raise LedgerError(
                f"The ledger {self.path} has schema {version}, this version of umbel reads up to {SCHEMA}: "
                "update umbel; nothing was spent."
            )
        # WAL is faster, not safer; while another process has the file open the switch may have to wait.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")

    def _version(self, connection: sqlite3.Connection) -> int | None:
        """Schema of the file, None for an empty one."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0 and version == 0 and application == 0:
            return None
        if application != APPLICATION:
            raise LedgerError(f"The file {self.path} is no ledger of umbel: give the path of a ledger file.")
        return int(version)


def _damaged(path: Path, error: sqlite3.Error) -> LedgerError:
    return LedgerError(
        f"The ledger {path} cannot be read or written ({error}): free some space, check its permissions or restore it "
        "from a backup; nothing was released."
    )
