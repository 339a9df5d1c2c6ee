"""Who is at the other end: what its certificate says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from umbel.errors import DeployError


@dataclass(frozen=True)
class Peer:
    """The holder of a certificate.

    ``name`` is the subject's common name (the site's or coordinator's), ``role`` its organizational unit (``agent``,
    ``client``, ``release``, ...; empty for a certificate that provisioning did not make).
    """

    name: str
    role: str
    serial: int
    not_before: datetime
    not_after: datetime

    def require_current(self, now: datetime | None = None) -> None:
        """Raises DeployError unless the certificate is valid at ``now`` (UTC, default: the clock)."""
        now = now or datetime.now(UTC)
        if now > self.not_after:
            raise DeployError(
                f"The certificate of {self.name!r} expired on {self.not_after:%Y-%m-%d %H:%M} UTC: renew it with "
                "'umbel provision renew'."
            )
        if now < self.not_before:
            raise DeployError(
                f"The certificate of {self.name!r} is valid only from {self.not_before:%Y-%m-%d %H:%M} UTC: set the "
                "clock of this machine."
            )


@lru_cache(maxsize=4096)
def read_peer(pem: bytes) -> Peer:
    """What a PEM certificate says about its holder; the signature is not checked here.

    Raises:
        DeployError: the bytes are no certificate, or it names nobody.
    """
    try:
        return describe(x509.load_pem_x509_certificate(pem))
    except (ValueError, x509.UnsupportedGeneralNameType) as error:
        raise DeployError(f"A certificate cannot be read ({error}): issue it again.") from None


def describe(certificate: x509.Certificate) -> Peer:
    """As :func:`read_peer`, of a certificate already parsed."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if len(names) != 1:
        raise DeployError("A certificate has no common name, or several: issue it again with 'umbel provision'.")
    return Peer(
        str(names[0].value),
        str(roles[0].value) if roles else "",
        certificate.serial_number,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def peer_of(context: grpc.ServicerContext) -> Peer | None:
    """The caller, as the TLS handshake of its connection proved it; None on a connection without one."""
    pems = context.auth_context().get("x509_pem_cert")
    return read_peer(bytes(next(iter(pems)))) if pems else None
