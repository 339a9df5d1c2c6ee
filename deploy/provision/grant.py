"""The grant: what the authority gives a member. Certificates, revocation list, roster and signers; nothing secret."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from deploy.provision.certificates import public_pem
from deploy.provision.keys import authority_key as read_key
from deploy.provision.keys import private_folder
from deploy.provision.member import USES, Kind
from deploy.provision.names import check_name
from deploy.provision.request import IDENTITY_FOLDER, folder_of
from privacy.secagg.agreement import site_id
from privacy.secagg.identity import Roster
from privacy.secagg.pinned import AUTHORITY, PURPOSE, ROSTER, ROSTER_SIGNATURE, pinned_roster
from umbel.errors import DeployError, UmbelError
from umbel.files import write_atomic
from umbel.keyfile import read_public
from umbel.signed import canonical, read_verifying_key, verify, verifying_pem
from umbel.signers import SIGNERS, SIGNERS_PURPOSE, SIGNERS_SIGNATURE, parse_signers
from umbel.tls.identity import CA, CERTIFICATE, KEY, REVOKED, load_identity, parse_certificate
from umbel.tls.peer import describe

MAX_GRANT_BYTES = 16 << 20
_FIELDS = ("federation", "ca", "authority", "crl", "roster", "roster_sig", "signers", "signers_sig", "name", "kind")


@dataclass(frozen=True)
class Grant:
    """A grant as it stands in its file; nothing in it is trusted before :func:`accept_grant` has checked it."""

    federation: str
    kind: Kind
    name: str
    ca: str
    authority: str
    certificates: dict[str, str]
    crl: str
    roster: str
    roster_sig: str
    signers: str
    signers_sig: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the authority's certificate and key: pinned at the first grant, compared by people."""
        return fingerprint(self.ca.encode(), bytes.fromhex(self.authority))

    def to_bytes(self) -> bytes:
        """Canonical JSON, one line."""
        return canonical({"format": 1, **self.__dict__}) + b"\n"


def fingerprint(ca: bytes, authority: bytes) -> str:
    """SHA-256 in hexadecimal over the authority's certificate (PEM) and its 32-byte signing key."""
    return hashlib.sha256(ca + authority).hexdigest()


def read_grant(data: bytes) -> Grant:
    """Reads the shape of a grant.

    Raises:
        DeployError: it is none, or larger than 16 MiB.
    """
    try:
        if len(data) > MAX_GRANT_BYTES:
            raise ValueError
        body = json.loads(data)
        if body.pop("format") != 1 or set(body) != {*_FIELDS, "certificates"}:
            raise ValueError
        certificates = body["certificates"]
        texts = [*(body[name] for name in _FIELDS), *certificates.values()]
        if not all(isinstance(text, str) and text.isascii() for text in texts):
            raise ValueError
        if set(certificates) != set(USES[body["kind"]]) or len(bytes.fromhex(body["authority"])) != 32:
            raise ValueError
        check_name(body["name"])
        return Grant(**body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DeployError("This is no grant: give the file that 'umbel provision sign' wrote.") from None


def accept_grant(folder: Path, grant: Grant, *, trust: str | None = None, now: datetime | None = None) -> None:
    """Puts what the authority signed into a member's folder, after checking all of it against the member's own keys.

    An authority that is pinned there is never replaced. A grant may be accepted again and again: a later one brings
    renewed certificates, the current revocation list and the current roster, and an older roster is refused.

    Args:
        folder: in which :func:`deploy.provision.make_request` made the keys.
        grant: of the authority.
        trust: the authority's fingerprint, told over another channel; needed for the first grant of a folder.
        now: UTC, default: the clock.

    Raises:
        DeployError: something in it does not fit; nothing has been written then.
    """
    identity = folder / IDENTITY_FOLDER
    _require_authority(folder, identity, grant, trust)
    authority = parse_certificate(grant.ca.encode(), Path(CA))
    for use, text in grant.certificates.items():
        _require_certificate(folder, grant, authority, use, text, now)
    _require_documents(identity, grant)
    private_folder(identity)
    write_atomic(identity / AUTHORITY, verifying_pem(bytes.fromhex(grant.authority)))
    for name, text in (
        (ROSTER, grant.roster),
        (ROSTER_SIGNATURE, grant.roster_sig),
        (SIGNERS, grant.signers),
        (SIGNERS_SIGNATURE, grant.signers_sig),
    ):
        write_atomic(identity / name, text.encode())
    for use, text in grant.certificates.items():
        place = folder_of(folder, use)
        for name, content in ((CA, grant.ca), (REVOKED, grant.crl), (CERTIFICATE, text)):
            write_atomic(place / name, content.encode())
        load_identity(place, now=now)


def _require_authority(folder: Path, identity: Path, grant: Grant, trust: str | None) -> None:
    pinned = False
    if (identity / AUTHORITY).exists():
        pinned = True
        known = read_verifying_key(read_public(identity / AUTHORITY), str(identity / AUTHORITY))
        if known != bytes.fromhex(grant.authority):
            _replaced(identity / AUTHORITY)
    for use in grant.certificates:
        path = folder_of(folder, use) / CA
        if path.exists():
            pinned = True
            if read_public(path) != grant.ca.encode():
                _replaced(path)
    if trust is not None and trust.lower().replace(":", "") != grant.fingerprint:
        raise DeployError(
            f"The grant's authority has the fingerprint {grant.fingerprint}, not the one given: do not accept it, ask "
            "the federation."
        )
    if not pinned and trust is None:
        raise DeployError(
            f"No authority is pinned in {folder} yet: compare the fingerprint {grant.fingerprint} with the federation "
            "over another channel, then give it with --fingerprint."
        )


def _replaced(path: Path) -> None:
    raise DeployError(
        f"The grant comes from another authority than the one pinned in {path}: a pinned authority is never replaced; "
        "ask the federation, and enrol in a new folder if it really changed."
    )


def _require_certificate(
    folder: Path, grant: Grant, authority: x509.Certificate, use: str, text: str, now: datetime | None
) -> None:
    certificate = parse_certificate(text.encode(), Path(CERTIFICATE))
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise DeployError(f"The grant's certificate for {use!r} is not of its authority: fetch it again.") from None
    peer = describe(certificate)
    peer.require_current(now)
    key = read_key(folder_of(folder, use) / KEY).public_key()
    if public_pem(key) != _public(certificate) or (peer.name, peer.role) != (grant.name, use):
        raise DeployError(
            f"The grant's certificate for {use!r} is not for the key in {folder_of(folder, use)}: it answers another "
            "request; send the request of this folder."
        )


def _public(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form)


def _require_documents(identity: Path, grant: Grant) -> None:
    """Roster and signers: of this authority, not older than what is there, and naming this member as it is."""
    authority = {bytes.fromhex(grant.authority)}
    seen = 0
    if (identity / ROSTER).exists():
        try:
            seen = pinned_roster(identity)[1]
        except UmbelError:
            seen = 0  # half of an update that was cut off; both files are written anew
    verify(grant.roster.encode(), grant.roster_sig.encode(), authority, PURPOSE, minimum=seen, what="roster")
    verify(grant.signers.encode(), grant.signers_sig.encode(), authority, SIGNERS_PURPOSE, what="list of signers")
    own = read_verifying_key(read_public(identity / "identity.pub"), str(identity / "identity.pub"))
    if grant.kind == "site":
        named = Roster.from_json(grant.roster).members.get(site_id(grant.name))
    else:
        named = parse_signers(grant.signers.encode()).get(grant.name)
    if named != own:
        raise DeployError(
            f"The grant does not name {grant.name!r} with the identity in {identity}: it answers another request; send "
            "the request of this folder."
        )
