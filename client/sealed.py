"""SealedStore: what a site keeps, readable on this machine by this site only."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.store import NodeStore
from umbel.errors import SiteError

_NONCE = 12


class SealedStore:
    """Seals every value with AES-256-GCM, bound to its name and owner, before another store keeps it.

    Args:
        inner: where the sealed bytes go.
        key: 32 bytes.
        owner: whose values these are; another owner's cannot be read in their place.
    """

    def __init__(self, inner: NodeStore, key: bytes, owner: str) -> None:
        self._inner = inner
        self._cipher = AESGCM(key)
        self._owner = owner

    def _bound(self, name: str) -> bytes:
        return f"{self._owner}\x00{name}".encode()

    def get(self, name: str) -> bytes | None:
        """See NodeStore. Raises SiteError when the value was altered or sealed elsewhere."""
        blob = self._inner.get(name)
        if blob is None:
            return None
        try:
            return self._cipher.decrypt(blob[:_NONCE], blob[_NONCE:], self._bound(name))
        except (InvalidTag, ValueError):
            raise SiteError(
                f"What site {self._owner} kept as {name!r} was altered or sealed on another machine: start a new run."
            ) from None

    def put(self, name: str, value: bytes) -> None:
        """See NodeStore."""
        nonce = os.urandom(_NONCE)
        self._inner.put(name, nonce + self._cipher.encrypt(nonce, value, self._bound(name)))

    def delete(self, name: str) -> None:
        """See NodeStore."""
        self._inner.delete(name)
