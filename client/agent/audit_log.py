"""AuditLog: what was asked of a site and what left it, one signed and chained JSON line an event.

Files ``audit-000001.jsonl``, ``audit-000002.jsonl``, ... form one chain. A line is ``{"number", "time", "kind",
"previous", ...facts, "signature"}``: ``previous`` is the SHA-256 of the line before (zeros for the first), the
signature (Ed25519, the site's key) covers the line without itself. ``head.json`` holds number and hash of the last
line, signed as well, and is replaced after every line. So verification finds an edited, inserted, moved or deleted
line, a line that another wrote, and lines cut off the end. A line is on disk before :meth:`AuditLog.append` returns.

What a chain cannot show by itself: that the whole folder, head included, was put back to an older copy. Whoever wants
to see that notes :attr:`AuditLog.head` elsewhere and gives it to :func:`verify` later.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from umbel.canonical import canonical_json
from umbel.errors import RunError, SiteError
from umbel.files import fsync_folder, write_atomic

GENESIS = "0" * 64
MAX_LINE = 1 << 20
_LINE = b"umbel site log line\n"
_HEAD = b"umbel site log head\n"
_HEAD_FILE = "head.json"
_RESERVED = frozenset({"number", "time", "kind", "previous", "signature"})


class Signer(Protocol):
    """Who signs: :class:`privacy.secagg.Identity`."""

    public: bytes

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: number of the last line and its hash."""

    number: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class AuditLog:
    """The log of one site, for writing.

    Several processes may append (the agent, and the command that approves): each takes the folder's lock.

    Args:
        folder: made when missing, 0700.
        signer: the site's identity.
        rotate: bytes of a file after which the next one begins.

    Raises:
        SiteError: the log that is there was altered; nothing may be done then.
    """

    def __init__(self, folder: Path, signer: Signer, *, rotate: int = 64 << 20) -> None:
        self._folder, self._signer, self._rotate = folder, signer, rotate
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SiteError(f"The log {folder} cannot be made ({error.strerror}): choose another folder.") from None
        with self._locked():
            self._recover()
            self._head = verify(folder, signer.public)

    @property
    def head(self) -> Head:
        """The end of the chain, as this process knows it."""
        return self._head

    def append(self, kind: str, **facts: Any) -> Head:
        """Writes one line and syncs it.

        Args:
            kind: one word.
            facts: JSON values.

        Raises:
            SiteError: the log was altered since, or cannot be written: whatever the line is about must not happen.
        """
        if _RESERVED & facts.keys():
            raise SiteError(f"A line of the log cannot hold {sorted(_RESERVED & facts.keys())}: rename the fact.")
        with self._locked():
            if _read_head(self._folder, self._signer.public) != self._head:
                self._head = verify(self._folder, self._signer.public)  # another process wrote, or somebody meddled
            number = self._head.number + 1
            body = {"number": number, "time": _now(), "kind": kind, "previous": self._head.hash, **facts}
            line = sign_line(body, self._signer)
            path, end = self._current()
            if len(line) > MAX_LINE:
                raise SiteError(f"A line of the log would take {len(line)} bytes, at most {MAX_LINE} are written.")
            if end + len(line) > self._rotate and end > 0:
                path = segment(self._folder, _number_of(path) + 1)
            try:
                self._write(path, line)
                self._head = Head(number, hashlib.sha256(line[:-1]).hexdigest())
                _write_head(self._folder, self._head, self._signer)
            except (OSError, RunError) as error:
                raise SiteError(
                    f"The log {path} cannot be written ({error}), so nothing is done: free space."
                ) from None
            return self._head

    def _write(self, path: Path, line: bytes) -> None:
        fresh = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            done = 0
            while done < len(line):
                done += os.write(descriptor, line[done:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            fsync_folder(self._folder)

    def _current(self) -> tuple[Path, int]:
        found = segments(self._folder)
        path = found[-1] if found else segment(self._folder, 1)
        return path, path.stat().st_size if path.exists() else 0

    def _recover(self) -> None:
        """A process that was killed may have left half a line, or a line that the head does not name yet."""
        found = segments(self._folder)
        if not found:
            if not (self._folder / _HEAD_FILE).exists():
                _write_head(self._folder, Head(), self._signer)
            return
        known = _read_head(self._folder, self._signer.public)
        try:
            data = found[-1].read_bytes()
        except OSError as error:
            raise _unreadable(found[-1], error) from None
        whole = data.rfind(b"\n") + 1
        ends = _walk(self._folder, self._signer.public, torn=whole < len(data))
        if ends.number not in (known.number, known.number + 1):
            return  # verify says what is wrong
        if whole < len(data):
            # The line was never synced, so nothing that it was about has happened.
            os.truncate(found[-1], whole)
        if ends.number == known.number + 1:
            _write_head(self._folder, ends, self._signer)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unreadable(self._folder, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def verify(folder: Path, public: bytes, *, noted: Head | None = None) -> Head:
    """Reads the whole log and returns its end.

    Args:
        folder: of the log.
        public: the site's public key, 32 bytes.
        noted: an earlier end, noted elsewhere, which must still be in the chain.

    Raises:
        SiteError: a line was altered, added, moved or lost, or the head does not fit.
    """
    known = _read_head(folder, public)
    end = _walk(folder, public, noted=noted)
    if end != known:
        what = "has lost lines at its end" if end.number < known.number else "holds lines that its head does not know"
        raise SiteError(
            f"The log {folder} {what} (it ends with line {end.number}, the head says {known.number}): restore it from "
            "the backup and find out who changed it."
        )
    if noted is not None and noted.number > end.number:
        raise SiteError(
            f"The log {folder} ends with line {end.number}, but line {noted.number} was noted elsewhere: it was put "
            "back to an older copy."
        )
    return end


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """All lines, oldest first, not verified. Raises SiteError for what is no line."""
    for path in segments(folder):
        for raw in _raw_lines(path):
            yield _parse(path, raw)


def sign_line(body: Mapping[str, Any], signer: Signer) -> bytes:
    """One line with its signature and newline."""
    signature = signer.sign(_LINE + canonical_json(body)).hex()
    return canonical_json({**body, "signature": signature}) + b"\n"


def segments(folder: Path) -> list[Path]:
    """Files of the log, oldest first; none where there is no folder. Raises SiteError when it cannot be read."""
    try:
        # Not glob, which takes a folder that it may not read for an empty one.
        found = [folder / name for name in os.listdir(folder) if fnmatch(name, "audit-*.jsonl")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None
    return sorted(found, key=_number_of)


def segment(folder: Path, number: int) -> Path:
    """File ``number`` of the log, from 1."""
    return folder / f"audit-{number:06d}.jsonl"


def _walk(folder: Path, public: bytes, *, noted: Head | None = None, torn: bool = False) -> Head:
    key = Ed25519PublicKey.from_public_bytes(public)
    end = Head()
    found = segments(folder)
    for place, path in enumerate(found, start=1):
        if path != segment(folder, place):
            raise SiteError(f"The log {folder} lacks its file {segment(folder, place).name}: restore it.")
        for raw in _raw_lines(path, torn=torn and place == len(found)):
            end = _next(path, raw, end, key)
            if noted is not None and noted.number == end.number and noted.hash != end.hash:
                raise SiteError(f"Line {end.number} of the log {folder} is not the one that was noted elsewhere.")
    return end


def _next(path: Path, raw: bytes, end: Head, key: Ed25519PublicKey) -> Head:
    body = _parse(path, raw)
    number = end.number + 1
    signature = body.pop("signature", None)
    if body.get("number") != number or body.get("previous") != end.hash:
        raise SiteError(
            f"Line {number} of the log ({path.name}) does not follow from the line before: one was altered, moved or "
            "deleted; restore the log from the backup and find out who did it."
        )
    try:
        key.verify(bytes.fromhex(signature), _LINE + canonical_json(body))
        genuine = canonical_json({**body, "signature": signature}) == raw
    except (InvalidSignature, ValueError, TypeError):
        genuine = False
    if not genuine:
        raise SiteError(
            f"Line {number} of the log ({path.name}) does not carry this site's signature: it was altered or written "
            "by somebody else; restore the log from the backup and find out who did it."
        )
    return Head(number, hashlib.sha256(raw).hexdigest())


def _raw_lines(path: Path, *, torn: bool = False) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while raw := stream.readline(MAX_LINE + 1):
                if not raw.endswith(b"\n"):
                    if torn:
                        return
                    raise SiteError(f"The last line of {path} is not whole: the file was cut.")
                yield raw[:-1]
    except OSError as error:
        raise _unreadable(path, error) from None


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise SiteError(f"{path} holds a line that is no line of a log: it was altered; restore it from the backup.")
    return body


def _read_head(folder: Path, public: bytes) -> Head:
    path = folder / _HEAD_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SiteError(f"The log {folder} has no {_HEAD_FILE}: restore it from the backup.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        body = json.loads(data)
        signature = bytes.fromhex(body.pop("signature"))
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _HEAD + canonical_json(body))
        number, digest = body["number"], body["hash"]
        if type(number) is not int or type(digest) is not str:
            raise ValueError("types")
    except (InvalidSignature, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SiteError(
            f"{path} does not carry this site's signature: it was altered, or keys.identity is another key now; "
            "restore it from the backup."
        ) from None
    return Head(number, digest)


def _write_head(folder: Path, head: Head, signer: Signer) -> None:
    body = {"number": head.number, "hash": head.hash}
    signed = {**body, "signature": signer.sign(_HEAD + canonical_json(body)).hex()}
    write_atomic(folder / _HEAD_FILE, canonical_json(signed), mode=0o600)


def _unreadable(path: Path, error: OSError) -> SiteError:
    return SiteError(
        f"The log {path} cannot be read or written ({error.strerror}): run this as the site's own user, or give the "
        "folder back to that user."
    )


def _number_of(path: Path) -> int:
    digits = path.stem.removeprefix("audit-")
    return int(digits) if digits.isdigit() else -1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
