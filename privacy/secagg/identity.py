"""Long-term identities: Ed25519 keys, the roster that a site pins, and the authority of a simulation.

Which key belongs to which id is known to a site from its roster, never from the coordinator: this is what
keeps a coordinator from inventing clients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.secagg.keys import derive
from umbel.errors import SecAggError

MAX_ID = (1 << 64) - 1
_REMEMBERED = 1 << 17


class Identity:
    """One site's id and Ed25519 signing key (RFC 8032).

    Args:
        id: 0 to 2^64 - 1.
        private: 32 bytes, or None for a fresh key.
    """

    def __init__(self, id: int, private: bytes | None = None) -> None:
        if not 0 <= id <= MAX_ID:
            raise SecAggError(f"Id {id} is not between 0 and 2^64 - 1.")
        if private is not None and len(private) != 32:
            raise SecAggError("An identity key is not 32 bytes long: read the key file that enrolment wrote.")
        self.id = id
        self._key = Ed25519PrivateKey.from_private_bytes(private) if private else Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity(id={self.id}, public={self.public.hex()})"

    @property
    def private(self) -> bytes:
        """32 bytes, for the key file of the site."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


class Roster:
    """Public keys by id, as pinned at a site (and at the coordinator).

    Args:
        members: 32-byte Ed25519 public keys by id; ids and keys unique.
        remember: keep the outcome of verifications, so that the many clients that one simulation process plays
            do not verify the same signature again; leave False at a site.

    Raises:
        SecAggError: a key is malformed or stands twice.
    """

    def __init__(self, members: Mapping[int, bytes], *, remember: bool = False) -> None:
        self.members = {int(id): bytes(key) for id, key in members.items()}
        if any(len(key) != 32 for key in self.members.values()):
            raise SecAggError("A roster holds a key that is not 32 bytes long: export the roster again.")
        if len(set(self.members.values())) != len(self.members):
            raise SecAggError("Two members of a roster have the same key: every site enrols with its own.")
        self._seen: dict[bytes, bool] | None = {} if remember else None

    def __contains__(self, id: object) -> bool:
        return id in self.members

    def __len__(self) -> int:
        return len(self.members)

    def verify(self, id: int, message: bytes, signature: bytes) -> bool:
        """Whether ``id`` is a member and signed exactly ``message``."""
        public = self.members.get(id)
        if public is None:
            return False
        if self._seen is None:
            return _verify(public, message, signature)
        key = hashlib.sha256(public + signature + message).digest()
        known = self._seen.get(key)
        if known is None:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            known = self._seen[key] = _verify(public, message, signature)
        return known

    def to_json(self) -> str:
        """Ids and hexadecimal keys, ascending."""
        return json.dumps({str(id): self.members[id].hex() for id in sorted(self.members)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Roster:
        """Reads what :meth:`to_json` wrote.

        Raises:
            SecAggError: the text is no roster, or an id stands twice.
        """
        try:
            pairs: list[tuple[str, str]] = json.loads(text, object_pairs_hook=list)
            members = {int(id): bytes.fromhex(key) for id, key in pairs}
            if len(members) != len(pairs) or not all(0 <= id <= MAX_ID for id in members):
                raise ValueError("an id stands twice or is out of range")
        except (ValueError, TypeError, RecursionError) as error:
            raise SecAggError(f"The roster cannot be read ({error}): export it again from the authority.") from None
        return cls(members)


class SimulationAuthority:
    """Stands in for enrolment where one machine plays every site: identities from one local secret.

    Protects nobody from that machine; it exists so that a simulation runs the same checks as a deployment.

    Args:
        secret: at least 16 bytes, the same in every process of one simulation.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise SecAggError("The simulation's secret is shorter than 16 bytes: draw it from the system's CSPRNG.")
        self._secret = bytes(secret)

    def identity(self, id: int) -> Identity:
        """The identity of ``id``, always the same."""
        return Identity(id, derive(self._secret, b"simulation", "identity", id.to_bytes(8, "big")))

    def roster(self, ids: Iterable[int]) -> Roster:
        """The roster of these ids."""
        return Roster({id: self.identity(id).public for id in ids}, remember=True)


def _verify(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
