"""Building certificates, requests and revocation lists (RFC 5280, RFC 2986). Keys are ECDSA: P-384 for the authority,
P-256 for services."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.provision.names import alternative_names

PublicKey = ec.EllipticCurvePublicKey
PrivateKey = ec.EllipticCurvePrivateKey

AUTHORITY_DAYS = 3650
_SKEW = timedelta(minutes=5)
"""Certificates begin this much earlier, for clocks that are a little behind."""


def now() -> datetime:
    """The clock, UTC, whole seconds (certificates hold no fractions)."""
    return datetime.now(UTC).replace(microsecond=0)


def pem(item: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList) -> bytes:
    """PEM bytes."""
    return item.public_bytes(serialization.Encoding.PEM)


def key_pem(key: PrivateKey) -> bytes:
    """PKCS #8, unencrypted: for a file of mode 0600."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    return key.private_bytes(*form, serialization.NoEncryption())


def public_pem(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def subject(name: str, use: str, federation: str) -> x509.Name:
    """Common name: the member. Organizational unit: what the certificate is for. Organization: the federation."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, use),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def make_authority(federation: str, key: PrivateKey) -> x509.Certificate:
    """A self-signed authority that may issue end certificates and nothing below."""
    name, start = subject(federation, "authority", federation), now()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=False, authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def issue(
    authority: x509.Certificate,
    signer: PrivateKey,
    public: PublicKey,
    *,
    name: str,
    use: str,
    federation: str,
    server: bool,
    hosts: Sequence[str],
    lifetime: timedelta,
) -> x509.Certificate:
    """A certificate for one service, valid from now for ``lifetime``, never longer than the authority's own."""
    start = now()
    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name, use, federation))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(min(start + lifetime, authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=True, authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative_names(tuple(hosts))), critical=False)
    return builder.sign(signer, hashes.SHA384())


def make_csr(key: PrivateKey, name: str, use: str, hosts: Sequence[str]) -> x509.CertificateSigningRequest:
    """A signing request; its own signature proves that the sender has the key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(name, use, "umbel"))
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative_names(tuple(hosts))), critical=False)
    return builder.sign(key, hashes.SHA256())


def make_crl(
    authority: x509.Certificate,
    signer: PrivateKey,
    revoked: Iterable[tuple[int, datetime]],
    *,
    number: int,
    lifetime: timedelta,
) -> x509.CertificateRevocationList:
    """The list of revoked serial numbers.

    Args:
        authority: that revokes.
        signer: its key.
        revoked: serial number and when.
        number: grows with each list.
        lifetime: after it, readers refuse the list.
    """
    start = now()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(start)
        .next_update(start + lifetime)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for serial, when in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer, hashes.SHA384())


def _usage(*, sign: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
