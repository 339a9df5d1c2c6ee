"""TlsIdentity: one service's certificate, key and pinned authority, from a folder of PEM files."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from umbel.errors import DeployError
from umbel.keyfile import read_private, read_public
from umbel.tls.peer import Peer, describe
from umbel.tls.revocation import RevocationList

CA, CERTIFICATE, KEY, REVOKED = "ca.pem", "cert.pem", "key.pem", "crl.pem"

Purpose = Literal["server", "client"]
_USAGE = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class TlsIdentity:
    """What one end of a connection is. ``ca``, ``certificate`` and ``key`` are PEM bytes."""

    folder: Path
    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    peer: Peer
    revoked: RevocationList


def load_identity(folder: Path | str, purpose: Purpose | None = None, *, now: datetime | None = None) -> TlsIdentity:
    """Reads ``ca.pem``, ``cert.pem``, ``key.pem`` and, where there is one, ``crl.pem``; checks that they fit.

    Args:
        folder: with these files.
        purpose: what the certificate must be good for; None does not ask.
        now: UTC, default: the clock.

    Raises:
        DeployError: a file is missing or broken, the key is open to others or belongs to another certificate, the
            certificate is expired, not yet valid, revoked, not for ``purpose``, or not of this authority.
    """
    folder = Path(folder).expanduser().absolute()
    ca, certificate = read_public(folder / CA), read_public(folder / CERTIFICATE)
    key = read_private(folder / KEY)
    authority, own = parse_certificate(ca, folder / CA), parse_certificate(certificate, folder / CERTIFICATE)
    _require_issued(own, authority, folder)
    _require_own(key, own, folder)
    if purpose is not None:
        _require_purpose(own, purpose, folder)
    peer = describe(own)
    peer.require_current(now)
    revoked = RevocationList(folder / REVOKED, authority)
    revoked.check(peer.serial, peer.name, now)
    return TlsIdentity(folder, ca, certificate, key, peer, revoked)


def parse_certificate(pem: bytes, path: Path) -> x509.Certificate:
    """The first certificate in ``pem``.

    Raises:
        DeployError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise DeployError(f"{path} is no PEM certificate: give the file that provisioning wrote.") from None


def _require_issued(own: x509.Certificate, authority: x509.Certificate, folder: Path) -> None:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            raise ValueError("is not an authority")
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        raise DeployError(
            f"{folder / CERTIFICATE} was not issued by the authority in {folder / CA}: the two come from different "
            "federations, or one was replaced; put back the file that was pinned at enrolment."
        ) from None


def _require_own(key: bytes, own: x509.Certificate, folder: Path) -> None:
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError):
        raise DeployError(f"{folder / KEY} is no unencrypted PEM key: give the file that provisioning wrote.") from None
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if public.public_bytes(*form) != own.public_key().public_bytes(*form):
        raise DeployError(
            f"{folder / KEY} does not belong to {folder / CERTIFICATE}: put both files of one enrolment there."
        )


def _require_purpose(own: x509.Certificate, purpose: Purpose, folder: Path) -> None:
    try:
        usages = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # a certificate without the extension is good for everything (RFC 5280, 4.2.1.12)
    if _USAGE[purpose] not in usages:
        raise DeployError(f"{folder / CERTIFICATE} is not for a {purpose}: give the folder of a {purpose}.")
