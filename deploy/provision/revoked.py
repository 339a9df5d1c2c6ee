"""The revocation list in a grant, checked before it takes the place of the one a member has."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from cryptography import x509

from umbel.errors import DeployError
from umbel.keyfile import read_bounded
from umbel.tls.identity import REVOKED
from umbel.tls.peer import Peer
from umbel.tls.revocation import MAX_CRL_BYTES, RevocationError, RevocationList


def require_list(text: str, authority: x509.Certificate, present: Path, peer: Peer, now: datetime | None) -> None:
    """Checks a list from a grant as every later reader will.

    Args:
        text: PEM.
        authority: whose signature it must carry.
        present: the list that it replaces; one that is missing or damaged counts as none.
        peer: holder of the certificate that comes with it.
        now: UTC, default: the clock.

    Raises:
        DeployError: it is not signed by ``authority``, out of date, older than the one at ``present``, or revokes the
            certificate that comes with it.
    """
    with tempfile.TemporaryDirectory(prefix="umbel-grant-") as folder:
        path = Path(folder) / REVOKED
        path.write_bytes(text.encode())
        try:
            RevocationList(path, authority).check(peer.serial, peer.name, now)
        except RevocationError:
            raise DeployError(
                "The grant's revocation list is not one of its authority that is still in force: have the authority "
                "run 'umbel provision renew' and send the new grant."
            ) from None
    number, known = _number(text.encode()), _known(present, authority)
    if number < known:
        raise DeployError(
            f"The grant's revocation list has number {number} and {present} has {known}: an older list would let "
            "revoked members in again; fetch the current grant."
        )


def _known(path: Path, authority: x509.Certificate) -> int:
    """The number of the list at ``path``, -1 where it is none that would be trusted."""
    if not path.exists():
        return -1
    try:
        RevocationList(path, authority).serials()
        return _number(read_bounded(path, MAX_CRL_BYTES))
    except DeployError:
        return -1


def _number(pem: bytes) -> int:
    return x509.load_pem_x509_crl(pem).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
