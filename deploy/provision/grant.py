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
from deploy.provision.documents import write_documents
from deploy.provision.keys import authority_key as read_key
from deploy.provision.member import USES, Kind
from deploy.provision.names import check_name
from deploy.provision.request import IDENTITY_FOLDER, folder_of
from deploy.provision.revoked import require_list
from privacy.secagg.agreement import site_id
from privacy.secagg.identity import Roster
from privacy.secagg.pinned import AUTHORITY, PURPOSE, ROSTER, ROSTER_SIGNATURE, pinned_roster
from umbel.errors import DeployError, UmbelError
from umbel.files import write_atomic
from umbel.keyfile import read_bounded, read_public
from umbel.signed import canonical, read_verifying_key, verify, verifying_pem
from umbel.signers import MAX_SIGNERS_BYTES, SIGNERS, SIGNERS_PURPOSE, SIGNERS_SIGNATURE, parse_signers
from umbel.tls.identity import CA, CERTIFICATE, KEY, REVOKED, parse_certificate
from umbel.tls.peer import Peer, describe

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
    renewed certificates, the current revocation list, roster and list of signers. Each of these three is refused if it
    is older than the one that is there, and so are roster and signers of two different grants.

    Every file that is written fits what the others were before and after, so that a crash in between leaves a folder
    that works and takes the same grant again.

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
    peers = {
        use: _require_certificate(folder, grant, authority, use, text, now) for use, text in grant.certificates.items()
    }
    _require_documents(identity, grant)
    for use, peer in peers.items():
        require_list(grant.crl, authority, folder_of(folder, use) / REVOKED, peer, now)
    for use, text in grant.certificates.items():
        place = folder_of(folder, use)
        for name, content in ((CA, grant.ca), (REVOKED, grant.crl), (CERTIFICATE, text)):
            write_atomic(place / name, content.encode())
    write_atomic(identity / AUTHORITY, verifying_pem(bytes.fromhex(grant.authority)))
    write_documents(
        identity,
        {
            ROSTER: grant.roster,
            ROSTER_SIGNATURE: grant.roster_sig,
            SIGNERS: grant.signers,
            SIGNERS_SIGNATURE: grant.signers_sig,
        },
    )


def _require_authority(folder: Path, identity: Path, grant: Grant, trust: str | None) -> None:
    pinned = 0
    if (identity / AUTHORITY).exists():
        pinned += 1
        known = read_verifying_key(read_public(identity / AUTHORITY), str(identity / AUTHORITY))
        if known != bytes.fromhex(grant.authority):
            _replaced(identity / AUTHORITY)
    for use in grant.certificates:
        path = folder_of(folder, use) / CA
        if path.exists():
            pinned += 1
            if read_public(path) != grant.ca.encode():
                _replaced(path)
    if trust is not None and trust.lower().replace(":", "") != grant.fingerprint:
        raise DeployError(
            f"The grant's authority has the fingerprint {grant.fingerprint}, not the one given: do not accept it, ask "
            "the federation."
        )
    if pinned <= len(grant.certificates) and trust is None:  # after half a first grant its other half is anybody's
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
) -> Peer:
    certificate = parse_certificate(text.encode(), Path(CERTIFICATE))
    try:
        if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        raise DeployError(f"The grant's certificate for {use!r} is not of its authority: fetch it again.") from None
    peer = describe(certificate)
    peer.require_current(now)
    key = read_key(folder_of(folder, use) / KEY).public_key()
    if public_pem(key) != _public(certificate) or (peer.name, peer.role) != (grant.name, use):
        raise DeployError(
            f"The grant's certificate for {use!r} is not for the key in {folder_of(folder, use)}: it answers another "
            "request; send the request of this folder."
        )
    return peer


def _public(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form)


def _require_documents(identity: Path, grant: Grant) -> None:
    """Roster and signers: of this authority, not older than what is there, and naming this member as it is."""
    authority = {bytes.fromhex(grant.authority)}
    versions = {
        what: verify(text.encode(), signature.encode(), authority, purpose, minimum=seen, what=what)
        for what, purpose, text, signature, seen in (
            ("roster", PURPOSE, grant.roster, grant.roster_sig, _seen_roster(identity)),
            ("list of signers", SIGNERS_PURPOSE, grant.signers, grant.signers_sig, _seen_signers(identity, authority)),
        )
    }
    if len(set(versions.values())) > 1:
        parts = " and ".join(f"version {version} of the {what}" for what, version in versions.items())
        raise DeployError(f"The grant holds {parts}, which no authority sent together: fetch the current grant.")
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


def _seen_roster(identity: Path) -> int:
    """Version of the roster that is there, 0 where it is missing or does not fit its signature."""
    if not (identity / ROSTER).exists():
        return 0
    try:
        return pinned_roster(identity)[1]
    except UmbelError:
        return 0  # whoever could damage it could have removed it as well: it is written anew


def _seen_signers(identity: Path, authority: set[bytes]) -> int:
    """The same for the list of signers."""
    if not (identity / SIGNERS).exists():
        return 0
    try:
        data, signature = read_bounded(identity / SIGNERS, MAX_SIGNERS_BYTES), read_public(identity / SIGNERS_SIGNATURE)
        return verify(data, signature, authority, SIGNERS_PURPOSE, what="list of signers")
    except UmbelError:
        return 0
