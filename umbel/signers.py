"""Whose signature on a release counts: names of coordinators and their keys, in a list that the authority signed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from umbel.errors import DeployError
from umbel.keyfile import read_bounded, read_public
from umbel.signed import canonical, read_verifying_key, verify

AUTHORITY, SIGNERS, SIGNERS_SIGNATURE = "authority.pub", "signers.json", "signers.sig"
SIGNERS_PURPOSE = "signers"
MAX_SIGNERS_BYTES = 1 << 18
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def write_signers(signers: dict[str, bytes]) -> bytes:
    """The list as JSON: 32-byte Ed25519 keys in hexadecimal by name."""
    return canonical({name: key.hex() for name, key in signers.items()}) + b"\n"


def parse_signers(data: bytes) -> dict[str, bytes]:
    """Reads what :func:`write_signers` wrote.

    Raises:
        DeployError: it is no such list.
    """
    try:
        if len(data) > MAX_SIGNERS_BYTES:
            raise ValueError
        found = {name: bytes.fromhex(key) for name, key in json.loads(data).items()}
        if any(len(key) != 32 for key in found.values()) or not all(_NAME.fullmatch(name) for name in found):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DeployError("The list of signers cannot be read: fetch it from the authority again.") from None
    return found


def pinned_signers(folder: Path) -> dict[str, bytes]:
    """The signers in ``folder`` (``authority.pub``, ``signers.json``, ``signers.sig``), signature checked.

    Raises:
        DeployError: a file is missing, or the list is not signed by the pinned authority.
    """
    authority = read_verifying_key(read_public(folder / AUTHORITY), str(folder / AUTHORITY))
    data = read_bounded(folder / SIGNERS, MAX_SIGNERS_BYTES)
    verify(data, read_public(folder / SIGNERS_SIGNATURE), {authority}, SIGNERS_PURPOSE, what="list of signers")
    return parse_signers(data)
