"""Key agreement, derivation and authenticated encryption: X25519, HKDF-SHA256 and AES-256-GCM.

Thin names over ``cryptography``, so that each use carries a label and the round's context.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secagg.reasons import Reason, violation

NONCE_BYTES, TAG_BYTES = 12, 16


class AgreementKey:
    """One X25519 key pair (RFC 7748) of one round. The private half leaves only through :attr:`private`."""

    def __init__(self, private: bytes | None = None) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private) if private else X25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()
        self._agreed: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public.hex()})"

    @property
    def private(self) -> bytes:
        """32 bytes; to be shared among neighbours or sealed, never sent."""
        return self._key.private_bytes_raw()

    def shared(self, public: bytes) -> bytes:
        """The 32-byte shared secret with the owner of ``public``.

        Raises:
            ProtocolViolation: ``public`` is a point of low order, with which everybody shares the same secret.
        """
        known = self._agreed.get(public)
        if known is not None:
            return known
        try:
            agreed = self._agreed[public] = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise violation(
                Reason.KEY, "A public key of the round is a point of low order: its owner must draw a fresh key."
            ) from None
        return agreed


def derive(secret: bytes, context: bytes, label: str, *parts: bytes, size: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869): salt is the round's context, info the label and length-prefixed parts."""
    info = b"umbel-secagg/" + label.encode() + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=context, info=info).derive(secret)


def seal(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """nonce, ciphertext and tag; ``bound`` is authenticated and not sent. The nonce is random."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """What :func:`seal` encrypted, or None when anything was altered or belongs elsewhere."""
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        return None
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
    except InvalidTag:
        return None
