"""What a site pins at enrolment and reads at every start: its identity, and the roster that the authority signed.

::

    identity.key     Ed25519 private key, PEM, mode 0600
    authority.pub    Ed25519 public key of the federation's authority, PEM
    roster.json      ids and keys, as Roster.to_json writes them
    roster.sig       the authority's signature over roster.json, with its version
"""

from __future__ import annotations

from pathlib import Path

from privacy.secagg.agreement import site_id
from privacy.secagg.identity import Identity, Roster
from umbel.errors import SecAggError
from umbel.keyfile import read_bounded, read_private, read_public
from umbel.signed import read_signing_key, read_verifying_key, verify

IDENTITY, AUTHORITY, ROSTER, ROSTER_SIGNATURE = "identity.key", "authority.pub", "roster.json", "roster.sig"
PURPOSE = "roster"
MAX_ROSTER_BYTES = 4 << 20
"""About 45,000 sites."""


def pinned_identity(folder: Path, name: str) -> Identity:
    """The identity of the site ``name``, from ``identity.key``.

    Raises:
        DeployError: the file is missing, no such key, or open to others.
    """
    path = folder / IDENTITY
    return Identity(site_id(name), read_signing_key(read_private(path), str(path)).private_bytes_raw())


def pinned_roster(folder: Path, *, minimum: int = 0) -> tuple[Roster, int]:
    """The roster in ``folder`` and its version, after checking the signature of the pinned authority.

    Args:
        folder: with ``authority.pub``, ``roster.json`` and ``roster.sig``.
        minimum: smallest version to accept: the newest one that was read before.

    Raises:
        DeployError: a file is missing, or the signature is not the authority's over exactly this roster, or too old.
        SecAggError: the signed text is no roster.
    """
    authority = read_verifying_key(read_public(folder / AUTHORITY), str(folder / AUTHORITY))
    data = read_bounded(folder / ROSTER, MAX_ROSTER_BYTES)
    version = verify(data, read_public(folder / ROSTER_SIGNATURE), {authority}, PURPOSE, minimum=minimum, what="roster")
    try:
        return Roster.from_json(data.decode("ascii")), version
    except (UnicodeDecodeError, RecursionError):
        raise SecAggError(f"{folder / ROSTER} is no roster: export it again from the authority.") from None
