"""The manifest: what a release is, signed by its coordinator; and the head, which version is current."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from coordinator.release.rules import MAX_FILE_BYTES, MAX_FILES, MAX_VERSION, check_file_name, check_release_name
from umbel.errors import DeployError
from umbel.signed import canonical, verify

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
PURPOSE, HEAD_PURPOSE = "release", "release head"
MAX_MANIFEST_BYTES = 1 << 18
MAX_HEAD_BYTES = 4096

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=8192)]
Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ReleasedFile(_Part):
    """One file: ``size`` in bytes, ``sha256`` of its content."""

    name: str
    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: Hash

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        try:
            return check_file_name(name)
        except DeployError as error:
            raise ValueError(str(error)) from None


class ReleasedBase(_Part):
    """The frozen base that the adapter belongs to."""

    name: Text
    hash: Text
    quantization: Text


class ReleasedPrivacy(_Part):
    """What was promised about the training data. ``epsilon`` None: no differential privacy."""

    epsilon: float | None = Field(ge=0)
    delta: float | None = Field(ge=0, le=1)
    statement: Text
    aggregation: Text


class Manifest(_Part):
    """Everything that the coordinator signs about one release."""

    format: Literal[1] = 1
    name: str
    version: Version
    run: Text
    created: int = Field(ge=0, le=MAX_VERSION)
    """Seconds since 1970."""
    umbel: Text
    strategy: Text
    config: Hash
    """SHA-256 of the run's config.toml."""
    base: ReleasedBase
    adapter: Text
    """Hash of the AdapterSpec: names and shapes of the factors."""
    values: int = Field(ge=0, le=MAX_VERSION)
    """Number of trained values."""
    privacy: ReleasedPrivacy
    files: list[ReleasedFile] = Field(min_length=1, max_length=MAX_FILES)

    @field_validator("name")
    @classmethod
    def _release(cls, name: str) -> str:
        try:
            return check_release_name(name)
        except DeployError as error:
            raise ValueError(str(error)) from None

    @field_validator("files")
    @classmethod
    def _once(cls, files: list[ReleasedFile]) -> list[ReleasedFile]:
        # Two names that differ in case alone are one file on some disks.
        if len({file.name.lower() for file in files}) != len(files):
            raise ValueError("a file stands twice")
        return files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> ReleasedFile:
        """The file of that name.

        Raises:
            DeployError: the release has none.
        """
        found = next((file for file in self.files if file.name == name), None)
        if found is None:
            raise DeployError(f"{self.name} {self.version} has no file {name[:80]!r}: take a name from its manifest.")
        return found

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is signed and stored."""
        return canonical(self.model_dump())


class Head(_Part):
    """Which version of a name is current. ``sequence`` grows with every publication and rollback."""

    format: Literal[1] = 1
    name: str
    version: Version
    sequence: Version
    time: int = Field(ge=0, le=MAX_VERSION)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical(self.model_dump())


def read_manifest(data: bytes, signature: bytes, signers: Collection[bytes]) -> Manifest:
    """The manifest in ``data``, if one of ``signers`` signed exactly these bytes.

    Raises:
        DeployError: signature or content is not acceptable; what comes from the network is checked before it is read.
    """
    verify(_bounded(data, MAX_MANIFEST_BYTES, "manifest"), signature, signers, PURPOSE, what="manifest")
    return parse_manifest(data)


def parse_manifest(data: bytes) -> Manifest:
    """Reads a manifest's bytes without looking at any signature.

    Raises:
        DeployError: it is none, not in canonical form, or larger than 256 KiB.
    """
    try:
        manifest = Manifest.model_validate(json.loads(_bounded(data, MAX_MANIFEST_BYTES, "manifest")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeployError(
            f"The manifest has a wrong {where!r} ({first['msg'][:300]}): this version of umbel cannot use the release."
        ) from None
    except (ValueError, RecursionError):
        raise DeployError("The manifest cannot be read: fetch the release again.") from None
    if manifest.to_bytes() != data:
        raise DeployError("The manifest is not in canonical form: publish the release again.")
    return manifest


def read_head(data: bytes, signature: bytes, signers: Collection[bytes], *, minimum: int = 0) -> Head:
    """The head in ``data``, if one of ``signers`` signed it and it is not older than sequence ``minimum``.

    Raises:
        DeployError: signature or content is not acceptable.
    """
    data = _bounded(data, MAX_HEAD_BYTES, "head")
    sequence = verify(data, signature, signers, HEAD_PURPOSE, minimum=minimum, what="head of the release")
    try:
        head = Head.model_validate(json.loads(data))
        check_release_name(head.name)
    except (ValueError, RecursionError):
        raise DeployError("The head of the release cannot be read: fetch it again.") from None
    if head.sequence != sequence or head.to_bytes() != data:
        raise DeployError("The head of the release contradicts its signature: fetch it again.")
    return head


def _bounded(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise DeployError(f"The {what} is larger than {limit} bytes: it is none of ours.")
    return data
