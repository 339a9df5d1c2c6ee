"""NodeStore: the few bytes that a site keeps from one message to the next.

Under Flower's simulation each message of a device may reach another process, so what a device
remembers travels in ``Context.state``, which never leaves the device's side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, RecordDict

from umbel.files import write_atomic

_RECORD = "umbel.site"


class NodeStore(Protocol):
    """Named byte strings of one device in one run."""

    def get(self, name: str) -> bytes | None:
        """The bytes stored under ``name``, or None."""

    def put(self, name: str, value: bytes) -> None:
        """Replaces what is stored under ``name``."""

    def delete(self, name: str) -> None:
        """Forgets ``name``; does nothing when it is not there."""


class MemoryStore:
    """A store in this process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        """See NodeStore."""
        return self._values.get(name)

    def put(self, name: str, value: bytes) -> None:
        """See NodeStore."""
        self._values[name] = value

    def delete(self, name: str) -> None:
        """See NodeStore."""
        self._values.pop(name, None)


class ContextStore:
    """A store in Flower's ``Context.state``."""

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def _record(self) -> ConfigRecord:
        record = self._state.config_records.get(_RECORD)
        return record if record is not None else ConfigRecord()

    def get(self, name: str) -> bytes | None:
        """See NodeStore."""
        value = self._record().get(name)
        return value if isinstance(value, bytes) else None

    def put(self, name: str, value: bytes) -> None:
        """See NodeStore."""
        self._state[_RECORD] = ConfigRecord({**self._record(), name: value})

    def delete(self, name: str) -> None:
        """See NodeStore."""
        self._state[_RECORD] = ConfigRecord({k: v for k, v in self._record().items() if k != name})


class FileStore:
    """A store in a folder, for what must survive a restart; files are readable by their owner only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """See NodeStore."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, value: bytes) -> None:
        """See NodeStore. Raises RunError when the folder cannot be written."""
        write_atomic(self._folder / name, value, mode=0o600)

    def delete(self, name: str) -> None:
        """See NodeStore."""
        (self._folder / name).unlink(missing_ok=True)
