"""Private keys of a member: made once in its folder, mode 0600, never replaced and never sent."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.provision.certificates import PrivateKey, key_pem
from umbel.errors import DeployError
from umbel.files import write_atomic
from umbel.keyfile import read_private
from umbel.signed import read_signing_key, signing_pem, verifying_pem


def private_folder(path: Path) -> Path:
    """Makes a folder that only its owner may enter, or leaves an existing one as it is."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DeployError(f"{path} cannot be made ({error.strerror}): choose a folder you may write to.") from None
    return path


def tls_key(path: Path) -> PrivateKey:
    """The P-256 key in ``path``, made if there is none."""
    if not path.exists():
        private_folder(path.parent)
        write_atomic(path, key_pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
    return _elliptic(path, read_private(path))


def authority_key(path: Path) -> PrivateKey:
    """The P-384 key in ``path``; it must be there."""
    return _elliptic(path, read_private(path))


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in ``path`` (``*.key``), made if there is none, with its public half beside it (``*.pub``)."""
    if not path.exists():
        private_folder(path.parent)
        write_atomic(path, signing_pem(Ed25519PrivateKey.generate()), mode=0o600)
    key = read_signing_key(read_private(path), str(path))
    public = path.with_suffix(".pub")
    if not public.exists():
        write_atomic(public, verifying_pem(key.public_key().public_bytes_raw()))
    return key


def node_key(path: Path) -> PrivateKey:
    """The SuperNode's ECDSA P-384 key in OpenSSH form, made if there is none, with ``.pub`` beside it.

    Flower refuses PEM here and other key types.
    """
    if not path.exists():
        private_folder(path.parent)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
        fresh = ec.generate_private_key(ec.SECP384R1())
        write_atomic(path, fresh.private_bytes(*form, serialization.NoEncryption()), mode=0o600)
    try:
        key = serialization.load_ssh_private_key(read_private(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DeployError(f"{path} is no unencrypted ECDSA P-384 key in OpenSSH form: move it away, a new one is made.")
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        write_atomic(public, ssh_public(key) + b"\n")
    return key


def ssh_public(key: PrivateKey) -> bytes:
    """``ecdsa-sha2-nistp384 AAAA...``."""
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def read_ssh_public(text: str) -> ec.EllipticCurvePublicKey:
    """An ECDSA P-384 public key in OpenSSH form.

    Raises:
        DeployError: it is none.
    """
    try:
        key = serialization.load_ssh_public_key(text.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DeployError("A SuperNode key is no ECDSA P-384 key in OpenSSH form: make it with 'umbel provision'.")
    return key


def _elliptic(path: Path, data: bytes) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{path} is no unencrypted elliptic-curve key in PEM: restore it from the backup.")
    return key
