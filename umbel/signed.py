"""Detached Ed25519 signatures over files (RFC 8032): rosters, lists of signers, manifests of releases.

A signature names its purpose and a version, both signed: a roster's signature is of no use on a manifest, and a reader
that remembers the newest version it saw refuses an older one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from umbel.canonical import canonical_json
from umbel.errors import DeployError

MAX_SIGNATURE_BYTES = 4096
MAX_VERSION = (1 << 63) - 1


def canonical(value: Any) -> bytes:
    """JSON in one form only: keys sorted, no spaces, ASCII, finite numbers.

    Raises:
        DeployError: the value has no JSON form, or holds NaN or an infinity.
    """
    try:
        return canonical_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise DeployError(
            f"A document cannot be signed ({error}): it must be plain JSON with finite numbers."
        ) from None


def sign(data: bytes, key: Ed25519PrivateKey, purpose: str, version: int = 0) -> bytes:
    """The signature file for ``data``.

    Args:
        data: the bytes as they are stored.
        key: of the signer.
        purpose: what the bytes are, for example ``"roster"``.
        version: 0 to 2^63 - 1; a newer document of the same purpose has a larger one.
    """
    signature = key.sign(_statement(data, purpose, version))
    signer = key.public_key().public_bytes_raw().hex()
    body = {"purpose": purpose, "version": version, "signer": signer, "signature": signature.hex()}
    return canonical(body) + b"\n"


def verify(
    data: bytes, signature: bytes, signers: Collection[bytes], purpose: str, *, minimum: int = 0, what: str = "document"
) -> int:
    """Checks a signature file; returns the version that was signed.

    Args:
        data: the bytes as they arrived.
        signature: what :func:`sign` returned.
        signers: 32-byte public keys that are trusted for this purpose.
        purpose: as it was signed.
        minimum: smallest version to accept.
        what: how to call the data in a message.

    Raises:
        DeployError: the signature is malformed, of somebody else, for another purpose, for other bytes, or too old.
    """
    signer, version, value = _parse(signature, purpose, what)
    if signer not in signers:
        raise DeployError(
            f"The {what} is signed by {signer.hex()[:16]}, whom nobody here trusts for it: fetch it from the "
            "federation's coordinator, or fetch the current list of signers."
        )
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(value, _statement(data, purpose, version))
    except (InvalidSignature, ValueError):
        raise DeployError(f"The {what} does not fit its signature: it was altered; fetch it again.") from None
    if version < minimum:
        raise DeployError(
            f"The {what} is version {version} and version {minimum} was seen before: an old one is not taken back; "
            "fetch the current one."
        )
    return version


def read_signing_key(pem: bytes, what: str) -> Ed25519PrivateKey:
    """An Ed25519 private key from PEM (PKCS #8, RFC 8410).

    Raises:
        DeployError: it is no such key.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DeployError(f"{what} is no unencrypted Ed25519 key in PEM: give the file that provisioning wrote.")
    return key


def read_verifying_key(pem: bytes, what: str) -> bytes:
    """The 32 bytes of an Ed25519 public key from PEM.

    Raises:
        DeployError: it is no such key.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise DeployError(f"{what} is no Ed25519 public key in PEM: give the file that provisioning wrote.")
    return key.public_bytes_raw()


def verifying_pem(public: bytes) -> bytes:
    """PEM of a 32-byte public key."""
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Ed25519PublicKey.from_public_bytes(public).public_bytes(*form)


def signing_pem(key: Ed25519PrivateKey) -> bytes:
    """PEM of a private key, unencrypted: for a file of mode 0600."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    return key.private_bytes(*form, serialization.NoEncryption())


def _statement(data: bytes, purpose: str, version: int) -> bytes:
    """What is signed: fixed-length parts after a purpose of stated length, so that no two inputs read alike."""
    name = purpose.encode()
    return b"".join(
        (
            b"umbel signed document\0",
            len(name).to_bytes(2, "big"),
            name,
            version.to_bytes(8, "big"),
            hashlib.sha256(data).digest(),
        )
    )


def _parse(signature: bytes, purpose: str, what: str) -> tuple[bytes, int, bytes]:
    try:
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise ValueError
        body = json.loads(signature)
        version = body["version"]
        signer, value = bytes.fromhex(body["signer"]), bytes.fromhex(body["signature"])
        right = type(version) is int and 0 <= version <= MAX_VERSION and (len(signer), len(value)) == (32, 64)
        if not right or body["purpose"] != purpose:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DeployError(f"The signature of the {what} is none: fetch the {what} and its signature again.") from None
    return signer, version, value
