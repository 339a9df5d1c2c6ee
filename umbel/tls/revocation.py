"""What the authority has revoked (RFC 5280, section 5), read again whenever the file changes."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from umbel.errors import DeployError
from umbel.keyfile import MAX_BYTES

MAX_CRL_BYTES = 64 * MAX_BYTES
"""4 MiB: about a hundred thousand revoked certificates."""


class RevocationError(DeployError):
    """The list itself cannot be trusted; whoever was asked about is neither admitted nor accused."""


class RevocationList:
    """Serial numbers that are no longer trusted, from a PEM file. Safe to use from several threads.

    Fails closed: a list that cannot be read, is not signed by the authority, is out of date, older than the one read
    before, or has vanished since, lets nobody in. A file that was never there is an empty list.

    Args:
        path: of the list.
        authority: whose signature it must carry.
    """

    def __init__(self, path: Path, authority: x509.Certificate) -> None:
        self.path = path
        self._authority = authority
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._number = -1
        self._until: datetime | None = None
        self._revoked: dict[int, datetime] = {}

    def check(self, serial: int, name: str, now: datetime | None = None) -> None:
        """Raises DeployError when ``serial`` is revoked or the list cannot be trusted.

        Args:
            serial: of a certificate.
            name: of its holder, for the message.
            now: UTC, default: the clock.
        """
        with self._lock:
            self._refresh()
            until, since = self._until, self._revoked.get(serial)
        if until is not None and (now or datetime.now(UTC)) > until:
            raise RevocationError(
                f"The revocation list {self.path} is out of date since {until:%Y-%m-%d %H:%M} UTC: fetch the current "
                "one from the authority ('umbel provision renew' writes it)."
            )
        if since is not None:
            raise DeployError(
                f"The certificate of {name!r} was revoked on {since:%Y-%m-%d %H:%M} UTC: ask the federation's "
                "authority to enrol you again."
            )

    def serials(self) -> frozenset[int]:
        """All revoked serial numbers, as the file says now.

        Raises:
            DeployError: the list cannot be trusted.
        """
        with self._lock:
            self._refresh()
            return frozenset(self._revoked)

    def _refresh(self) -> None:
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._seen:
                return
            with self.path.open("rb") as stream:
                data = stream.read(MAX_CRL_BYTES + 1)
        except FileNotFoundError:
            if self._seen is None:
                return
            raise RevocationError(
                f"The revocation list {self.path} has vanished: put it back, until then nobody is let in."
            ) from None
        except OSError as error:
            raise RevocationError(
                f"The revocation list {self.path} cannot be read ({error.strerror}): mend it."
            ) from None
        number, until, revoked = self._parse(data)
        if number < self._number:
            raise RevocationError(
                f"The revocation list {self.path} is older (number {number}) than the one before ({self._number}): "
                "put the newer one back."
            )
        self._seen, self._number, self._until, self._revoked = stamp, number, until, revoked

    def _parse(self, data: bytes) -> tuple[int, datetime | None, dict[int, datetime]]:
        try:
            if len(data) > MAX_CRL_BYTES:
                raise ValueError(f"it is larger than {MAX_CRL_BYTES} bytes")
            crl = x509.load_pem_x509_crl(data)
            key = self._authority.public_key()
            # The two names differ only in a list of another authority; comparing them gives a better sentence.
            if crl.issuer != self._authority.subject or not crl.is_signature_valid(key):  # type: ignore[arg-type]
                raise ValueError("it is not signed by the pinned authority")
            number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            return number, crl.next_update_utc, {entry.serial_number: entry.revocation_date_utc for entry in crl}
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise RevocationError(
                f"The revocation list {self.path} cannot be trusted ({error}): fetch it from the authority again."
            ) from None
