"""Fetching: the site's end of a release. Signature first, then bytes, then hashes, then one rename."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc

from coordinator.release import release_pb2 as pb
from coordinator.release import release_pb2_grpc as rpc
from coordinator.release.incoming import MAX_CHUNK_BYTES, Incoming
from coordinator.release.manifest import (
    MAX_HEAD_BYTES,
    MAX_MANIFEST_BYTES,
    Head,
    Manifest,
    ReleasedFile,
    read_head,
    read_manifest,
)
from coordinator.release.rules import check_release_name
from coordinator.release.shelf import Shelf, verify_folder
from umbel.errors import DeployError
from umbel.tls import open_channel

T = TypeVar("T")
_MESSAGE_BYTES = MAX_CHUNK_BYTES + MAX_MANIFEST_BYTES + MAX_HEAD_BYTES + (1 << 16)
_ATTEMPTS = 5
_CALL_SECONDS = 60.0
_SLOWEST = 64 << 10
"""Bytes a second below which a download is given up."""
_TRANSIENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


@dataclass(frozen=True)
class Described:
    """A release whose signatures were checked, with the bytes that were signed."""

    manifest: Manifest
    manifest_bytes: bytes
    manifest_signature: bytes
    head: Head
    head_bytes: bytes
    head_signature: bytes


class ReleaseClient(AbstractContextManager["ReleaseClient"]):
    """A connection to a release server.

    Args:
        address: ``host:port``.
        tls: folder of the caller's certificate.
        signers: public keys whose signature on a release counts.
        role: of the server's certificate.

    Raises:
        DeployError: no connection; the sentence says why.
    """

    def __init__(self, address: str, tls: Path, signers: Collection[bytes], *, role: str | None = "release") -> None:
        self._address, self._tls, self._role = address, tls, role
        self._signers = frozenset(signers)
        self._open()

    def _open(self) -> None:
        options = [("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.max_metadata_size", 16 << 10)]
        self._channel = open_channel(self._address, self._tls, role=self._role, options=options)
        self._stub = rpc.ReleasesStub(self._channel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def list(self, name: str = "") -> list[pb.Entry]:
        """What the server says there is, newest first; for people, none of it is signed.

        Raises:
            DeployError: the server refuses or cannot be reached.
        """
        return list(self._retried(lambda: self._stub.List(pb.ListRequest(name=name), timeout=_CALL_SECONDS)).entries)

    def describe(self, name: str, version: int = 0, *, minimum: int = 0) -> Described:
        """The manifest of a version (0: the current one) and the head, both verified.

        Raises:
            DeployError: a signature is not good, the head is older than sequence ``minimum``, or the server answers
                with another release than the one asked for.
        """
        request = pb.DescribeRequest(name=check_release_name(name), version=version)
        answer = self._retried(lambda: self._stub.Describe(request, timeout=_CALL_SECONDS))
        head = read_head(answer.head, answer.head_signature, self._signers, minimum=minimum)
        manifest = read_manifest(answer.manifest, answer.manifest_signature, self._signers)
        if (manifest.name, manifest.version) != (name, version or head.version) or head.name != name:
            raise DeployError(
                f"{self._address} answered with {manifest.name} {manifest.version} instead of {name} "
                f"{version or head.version}: do not use this server."
            )
        return Described(
            manifest,
            answer.manifest,
            answer.manifest_signature,
            head,
            answer.head,
            answer.head_signature,
        )

    def pull(self, name: str, shelf: Shelf, version: int = 0) -> Path:
        """Fetches a version and puts it on the shelf, verified, whole or not at all; returns its folder.

        Without ``version`` it is the current one, and ``current`` points at it afterwards. What was fetched before is
        verified again and not fetched again. A download that breaks off goes on where it stopped, now or next time.

        Raises:
            DeployError: the server refuses, a signature or hash is wrong, the head is older than one seen before, or
                the disk is full. The shelf then holds what it held before.
        """
        found = self.describe(name, version, minimum=shelf.sequence(self._signers))
        target = shelf.version(found.manifest.version)
        if target.exists():
            there = verify_folder(target, self._signers)
            if there != found.manifest:
                raise DeployError(
                    f"{target} holds another release of the same number: move it away and ask the coordinator."
                )
        else:
            shelf.require_room(found.manifest)
            part = shelf.part(found.manifest.version)
            _clear_strays(part, found.manifest)
            for file in found.manifest.files:
                self._fetch(found.manifest, file, part / file.name)
            target = shelf.complete(
                found.manifest.version, found.manifest_bytes, found.manifest_signature, self._signers
            )
        if version == 0:
            shelf.make_current(found.head, found.head_bytes, found.head_signature)
        return target

    def _fetch(self, manifest: Manifest, file: ReleasedFile, path: Path) -> None:
        what = f"{file.name} of {manifest.name} {manifest.version}"
        with Incoming(path, file, what) as incoming:

            def rest() -> None:
                if not incoming.missing:
                    return
                request = pb.FetchRequest(
                    name=manifest.name, version=manifest.version, file=file.name, offset=incoming.offset
                )
                call = self._stub.Fetch(request, timeout=_CALL_SECONDS + incoming.missing / _SLOWEST)
                try:
                    for chunk in call:
                        incoming.add(chunk.offset, chunk.data)
                finally:
                    call.cancel()

            self._retried(rest)
            incoming.finish()

    def _retried(self, call: Callable[[], T]) -> T:
        """Tries again with a fresh connection while the server or the way to it is down for a moment."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except grpc.RpcError as error:
                code = error.code()
                if code not in _TRANSIENT or attempt == _ATTEMPTS - 1:
                    raise DeployError(self._sentence(error)) from None
            self._reconnect()
        raise AssertionError

    def _reconnect(self) -> None:
        """A server that restarts is not there for a moment."""
        self._channel.close()
        for attempt in range(_ATTEMPTS):
            time.sleep(0.2 * 2**attempt)
            try:
                return self._open()
            except DeployError:
                if attempt == _ATTEMPTS - 1:
                    raise
        return None

    def _sentence(self, error: grpc.RpcError) -> str:
        details = " ".join((error.details() or "").split())[:500]
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return f"{self._address} is too slow or too busy ({details}): pull again later, what has come is kept."
        return f"{self._address} refused: {details}" if details else f"{self._address} refused ({error.code().name})."


def _clear_strays(part: Path, manifest: Manifest) -> None:
    """Whatever is not a file of this manifest does not belong into the unfinished folder."""
    wanted = {file.name for file in manifest.files}
    for path in part.iterdir():
        if path.name not in wanted or path.is_symlink() or not path.is_file():
            if path.is_dir() and not path.is_symlink():
                raise DeployError(f"{path} is a folder where none belongs: delete {part} and pull again.")
            path.unlink()
