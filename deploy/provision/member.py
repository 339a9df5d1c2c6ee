"""Members, as the authority's index keeps them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, model_validator

from umbel.errors import DeployError

Kind = Literal["site", "coordinator"]

USES: dict[Kind, dict[str, bool]] = {
    "site": {"agent": True, "client": False},
    "coordinator": {"superlink": True, "proxy": True, "release": True, "operator": False},
}
"""By kind of member: what its certificates are for, and whether that is a server."""

FOLDERS = {"agent": "tls"}
"""Where a certificate goes in its member's folder, if not under its own name: the site policy's ``listen.tls``."""


class Issued(BaseModel):
    """One certificate that was issued."""

    model_config = ConfigDict(extra="forbid")

    use: str
    serial: int
    not_after: datetime
    revoked: datetime | None = None


class Member(BaseModel):
    """A site or a coordinator. All keys are public ones."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    name: str
    folder: str = ""
    """Where its keys were made, if on this machine; empty for a member that keeps its own."""
    keys: dict[str, str] = Field(default_factory=dict)
    """PEM of the TLS public key by use."""
    hosts: dict[str, list[str]] = Field(default_factory=dict)
    """Alternative names by use, for servers."""
    supernode: str = ""
    """OpenSSH public key, sites only."""
    node: str = ""
    """Flower's id of the registered SuperNode."""
    identity: str = ""
    """Ed25519 public key in hexadecimal: a site's in the roster, a coordinator's among the signers of releases."""
    certificates: list[Issued] = Field(default_factory=list)
    revoked: datetime | None = None

    @model_validator(mode="after")
    def _readable(self) -> Member:
        """What stands in the index is read when it is opened, not in the middle of a change."""
        if self.identity and len(bytes.fromhex(self.identity)) != 32:
            raise ValueError("the identity is no Ed25519 key")
        for use in self.keys:
            self.key(use)
        return self

    def key(self, use: str) -> ec.EllipticCurvePublicKey:
        """The TLS public key for ``use``.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        try:
            public = load_pem_public_key(self.keys[use].encode())
        except (KeyError, UnsupportedAlgorithm):
            public = None
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError(f"the key for {use!r} is no elliptic-curve key")
        return public

    def current(self, use: str) -> Issued | None:
        """The certificate issued last for ``use``, unless it is revoked."""
        found = [issued for issued in self.certificates if issued.use == use and issued.revoked is None]
        return found[-1] if found else None


class Index(BaseModel):
    """All that the authority remembers."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    federation: str
    days: int = Field(ge=1, le=825)
    crl: int = 0
    """Number of the last revocation list."""
    version: int = 0
    """Of the last roster and list of signers."""
    members: dict[str, Member] = Field(default_factory=dict)
    former: list[Member] = Field(default_factory=list)
    """Revoked members whose name enrolled again since: their certificates stay revoked, their keys unusable."""

    def require_new_keys(self, name: str, keys: set[str]) -> None:
        """A key belongs to one member, and a revoked one to nobody.

        Raises:
            DeployError: one of ``keys``, which ``name`` asks with, is known.
        """
        for member in (*self.former, *self.members.values()):
            if keys & {member.identity, member.supernode, *member.keys.values()}:
                state = "was revoked with" if member.revoked else "belongs to"
                raise DeployError(
                    f"A key in the request of {name!r} {state} {member.name!r}: make new keys in an empty folder."
                )
