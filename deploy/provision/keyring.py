"""The authority's two private keys: one signs certificates and the revocation list, one the roster and the signers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.provision import certificates as build
from deploy.provision.passphrase import Passphrase
from privacy.secagg.pinned import AUTHORITY
from umbel.errors import DeployError
from umbel.files import write_atomic
from umbel.keyfile import read_private, read_public
from umbel.signed import read_verifying_key, verifying_pem
from umbel.tls.identity import CA

CA_KEY, AUTHORITY_KEY, PUBLIC = "ca.key", "authority.key", "public"


class Keyring:
    """Opens the keys when they are needed, and not before: to look at an authority takes no passphrase.

    Args:
        folder: of the authority.
        ca: its certificate.
        passphrase: of the keys.
    """

    def __init__(self, folder: Path, ca: x509.Certificate, passphrase: Passphrase) -> None:
        self._folder, self._ca, self._passphrase = folder, ca, passphrase

    @cached_property
    def public(self) -> bytes:
        """The 32 bytes of the signing key's public half; :attr:`signing` compares it with the private one."""
        path = self._folder / PUBLIC / AUTHORITY
        return read_verifying_key(read_public(path), str(path))

    @cached_property
    def signing(self) -> Ed25519PrivateKey:
        """Signs the roster and the list of release signers. Raises DeployError."""
        key = self._passphrase.open(self._folder / AUTHORITY_KEY)
        if not isinstance(key, Ed25519PrivateKey) or key.public_key().public_bytes_raw() != self.public:
            raise self._foreign(AUTHORITY_KEY, AUTHORITY)
        return key

    @cached_property
    def ca(self) -> ec.EllipticCurvePrivateKey:
        """Signs certificates and the revocation list. Raises DeployError."""
        key = self._passphrase.open(self._folder / CA_KEY)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._ca.public_key():
            raise self._foreign(CA_KEY, CA)
        return key

    def unlock(self) -> None:
        """Opens both, so that a wrong passphrase is said before anything has changed. Raises DeployError.

        The files are looked at each time: one that was opened to others since is refused.
        """
        for name in (CA_KEY, AUTHORITY_KEY):
            read_private(self._folder / name)
        _ = self.ca, self.signing

    def encrypt(self, new: Passphrase) -> None:
        """Encrypts both under another passphrase, or under their first; without one they are decrypted.

        One file after the other: if it was cut off, run it again; what has the new passphrase already stays.

        Raises:
            DeployError: the old passphrase is missing or wrong.
        """
        for name in (CA_KEY, AUTHORITY_KEY):
            path = self._folder / name
            try:
                key = self._passphrase.open(path)
            except DeployError as error:
                try:
                    key = new.open(path)
                except DeployError:
                    raise error from None
            write_atomic(path, new.seal(key), mode=0o600)
        self._passphrase = new

    def _foreign(self, private: str, public: str) -> DeployError:
        return DeployError(
            f"{self._folder / private} is not the key of {PUBLIC}/{public}: restore the folder from its backup."
        )


def make_keys(folder: Path, federation: str, passphrase: Passphrase) -> None:
    """Fresh keys, with the certificate and the public half beside them in ``public/``."""
    key, signer = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()
    write_atomic(folder / CA_KEY, passphrase.seal(key), mode=0o600)
    write_atomic(folder / AUTHORITY_KEY, passphrase.seal(signer), mode=0o600)
    write_atomic(folder / PUBLIC / CA, build.pem(build.make_authority(federation, key)))
    write_atomic(folder / PUBLIC / AUTHORITY, verifying_pem(signer.public_key().public_bytes_raw()))
