"""A passphrase for the authority's keys: asked for once, and only where a key is encrypted.

Encrypted keys are PKCS #8 (RFC 5958) under PBES2 (RFC 8018) with PBKDF2-HMAC-SHA-256 and AES-256-CBC, as OpenSSL reads
them. They are written here because the library's own writer repeats the hash 2048 times only.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.padding import PKCS7

from umbel.errors import DeployError
from umbel.keyfile import read_private

Key = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
SHORTEST, LONGEST = 12, 1023
"""Bytes of a passphrase; OpenSSL takes no longer one."""
ITERATIONS = 600_000
"""As OWASP recommends for PBKDF2-HMAC-SHA-256 (Password Storage Cheat Sheet, 2023)."""
_LABEL = b"ENCRYPTED PRIVATE KEY"
# Object identifiers in DER.
_PBES2, _PBKDF2 = bytes.fromhex("06092a864886f70d01050d"), bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA256, _AES256_CBC = bytes.fromhex("06082a864886f70d0209"), bytes.fromhex("060960864801650304012a")
_NULL = bytes.fromhex("0500")
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04


class Passphrase:
    """Opens keys and seals them.

    Args:
        ask: gives the passphrase, or raises a DeployError; called at most once. None: there is none.
    """

    def __init__(self, ask: Callable[[], bytes] | None = None) -> None:
        self._ask = ask
        self._known: bytes | None = None

    def open(self, path: Path) -> Key:
        """The private key in ``path``, encrypted or not.

        Raises:
            DeployError: the file is no such key or open to others, or the passphrase is missing or wrong.
        """
        data = read_private(path)
        encrypted = b"BEGIN " + _LABEL in data
        if encrypted and self._ask is None:
            raise DeployError(
                f"{path} is encrypted: give its passphrase with --passphrase-file, or run the command in a terminal."
            )
        try:
            key = serialization.load_pem_private_key(data, self._secret() if encrypted else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            if encrypted:
                raise DeployError(
                    f"The passphrase does not open {path}: give the one that the authority was made with."
                ) from None
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey | Ed25519PrivateKey):
            raise DeployError(f"{path} is no private key of an authority in PEM: restore it from the backup.")
        return key

    def seal(self, key: Key) -> bytes:
        """PEM, encrypted where there is a passphrase: for a file of mode 0600."""
        coding, plain = serialization.Encoding, serialization.NoEncryption()
        if self._ask is None:
            return key.private_bytes(coding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return _encrypted(key.private_bytes(coding.DER, serialization.PrivateFormat.PKCS8, plain), self._secret())

    def _secret(self) -> bytes:
        if self._known is None:
            assert self._ask is not None
            self._known = check_passphrase(self._ask())
        return self._known


def check_passphrase(secret: bytes) -> bytes:
    """``secret``, if it can protect a key.

    Raises:
        DeployError: it is too short or too long.
    """
    if not SHORTEST <= len(secret) <= LONGEST:
        raise DeployError(
            f"The passphrase has {len(secret)} bytes, expected {SHORTEST} to {LONGEST}: choose several words."
        )
    return secret


def read_passphrase(path: Path) -> bytes:
    """The first line of a private file.

    Raises:
        DeployError: the file is missing, open to others, or its line is no passphrase.
    """
    return check_passphrase(read_private(path).partition(b"\n")[0].removesuffix(b"\r"))


def _encrypted(inner: bytes, secret: bytes) -> bytes:
    """EncryptedPrivateKeyInfo (RFC 5958, section 3) in PEM around a PrivateKeyInfo in DER."""
    salt, vector = os.urandom(16), os.urandom(16)
    stretched = PBKDF2HMAC(hashes.SHA256(), 32, salt, ITERATIONS).derive(secret)
    padder = PKCS7(128).padder()
    cipher = Cipher(AES(stretched), CBC(vector)).encryptor()
    sealed = cipher.update(padder.update(inner) + padder.finalize()) + cipher.finalize()
    count = ITERATIONS.to_bytes(ITERATIONS.bit_length() // 8 + 1, "big")
    function = _der(_SEQUENCE, _der(_OCTETS, salt), _der(_INTEGER, count), _der(_SEQUENCE, _HMAC_SHA256, _NULL))
    scheme = _der(_SEQUENCE, _AES256_CBC, _der(_OCTETS, vector))
    parameters = _der(_SEQUENCE, _der(_SEQUENCE, _PBKDF2, function), scheme)
    whole = _der(_SEQUENCE, _der(_SEQUENCE, _PBES2, parameters), _der(_OCTETS, sealed))
    text = base64.b64encode(whole)
    lines = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
    return b"-----BEGIN " + _LABEL + b"-----\n" + lines + b"-----END " + _LABEL + b"-----\n"


def _der(tag: int, *parts: bytes) -> bytes:
    """One element of DER (X.690): tag, length, content."""
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content
