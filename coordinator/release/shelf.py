"""The shelf: what a site has fetched, one folder a version, verified before it appears there.

::

    SHELF/NAME/3/           adapter_config.json, adapter_model.safetensors, ..., manifest.json, manifest.sig
    SHELF/NAME/current      a link to the version that the coordinator calls current
    SHELF/NAME/head.json    the newest head that was seen, so that an older one is refused
    SHELF/NAME/.3.part/     what has come of a download that broke off
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from coordinator.release.blobs import hash_file
from coordinator.release.manifest import (
    MANIFEST,
    MAX_HEAD_BYTES,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    Head,
    Manifest,
    read_head,
    read_manifest,
)
from coordinator.release.rules import check_content, check_release_name
from umbel.errors import DeployError
from umbel.files import fsync_folder, write_atomic
from umbel.keyfile import read_bounded
from umbel.signed import MAX_SIGNATURE_BYTES

HEAD, HEAD_SIGNATURE = "head.json", "head.sig"


def verify_folder(folder: Path, signers: Collection[bytes]) -> Manifest:
    """Checks a fetched release: the manifest's signature, and that exactly its files are there, unaltered.

    Raises:
        DeployError: something is missing, altered, additional, or signed by nobody trusted.
    """
    manifest = read_manifest(
        read_bounded(folder / MANIFEST, MAX_MANIFEST_BYTES),
        read_bounded(folder / SIGNATURE, MAX_SIGNATURE_BYTES),
        signers,
    )
    expected = {file.name for file in manifest.files} | {MANIFEST, SIGNATURE}
    for path in sorted(folder.iterdir()):
        if path.name not in expected or path.is_symlink() or not path.is_file():
            raise DeployError(f"{path} is not part of the release: somebody put it there; fetch the release again.")
    for file in manifest.files:
        digest, size = hash_file(folder / file.name)
        if (digest, size) != (file.sha256, file.size):
            raise DeployError(
                f"{folder / file.name} is not the file that was signed: it was altered; delete the folder and fetch "
                "the release again."
            )
        check_content(folder / file.name)
    return manifest


class Shelf:
    """The fetched versions of one name.

    Args:
        root: folder of all releases of this site.
        name: of the release.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root.expanduser().absolute() / check_release_name(name)
        self.name = name

    def version(self, version: int) -> Path:
        """Where a version lies, or would lie."""
        return self.folder / str(version)

    def part(self, version: int) -> Path:
        """Where an unfinished version is kept, made if it is not there.

        Raises:
            DeployError: it cannot be made.
        """
        path = self.folder / f".{version}.part"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeployError(f"{path} cannot be made ({error.strerror}): choose another folder.") from None
        return path

    def sequence(self, signers: Collection[bytes]) -> int:
        """Of the newest head that was kept; 0 when none was, or its signer is no longer trusted."""
        try:
            data = read_bounded(self.folder / HEAD, MAX_HEAD_BYTES)
            return read_head(data, read_bounded(self.folder / HEAD_SIGNATURE, MAX_SIGNATURE_BYTES), signers).sequence
        except DeployError:
            return 0

    def require_room(self, manifest: Manifest) -> None:
        """Raises DeployError unless the disk can take the release."""
        folder = self.part(manifest.version)
        there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        free = shutil.disk_usage(folder).free
        if manifest.size - there > free:
            raise DeployError(
                f"{self.name} {manifest.version} needs {manifest.size - there} more bytes and {self.folder} has {free} "
                "free: free some space."
            )

    def complete(self, version: int, manifest: bytes, signature: bytes, signers: Collection[bytes]) -> Path:
        """Turns the unfinished folder into the version, after verifying it as it lies on the disk.

        Raises:
            DeployError: it does not verify, or cannot be renamed.
        """
        part, target = self.part(version), self.version(version)
        write_atomic(part / MANIFEST, manifest)
        write_atomic(part / SIGNATURE, signature)
        verify_folder(part, signers)
        try:
            fsync_folder(part)
            os.replace(part, target)
            fsync_folder(self.folder)
        except OSError as error:
            raise DeployError(f"{target} cannot be written ({error.strerror}): move away what is there.") from None
        return target

    def make_current(self, head: Head, data: bytes, signature: bytes) -> Path:
        """Points ``current`` at the version that the head names, in one rename; returns the link.

        Raises:
            DeployError: that version was not fetched.
        """
        if not self.version(head.version).is_dir():
            raise DeployError(f"{self.name} {head.version} was not fetched yet: run 'umbel release pull {self.name}'.")
        link = self.folder / "current"
        try:
            staging = Path(tempfile.mkdtemp(dir=self.folder, prefix=".current."))
            try:
                os.symlink(str(head.version), staging / "link")
                os.replace(staging / "link", link)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            fsync_folder(self.folder)
        except OSError as error:
            raise DeployError(f"{link} cannot be written ({error.strerror}): move away what is there.") from None
        write_atomic(self.folder / HEAD, data)
        write_atomic(self.folder / HEAD_SIGNATURE, signature)
        return link
