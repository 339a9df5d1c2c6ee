"""The signing request: what a member asks of the authority. Public keys, and proofs that it has the private ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtensionOID, NameOID

from deploy.provision.certificates import PublicKey, make_csr, pem
from deploy.provision.keys import node_key, read_ssh_public, signing_key, ssh_public, tls_key
from deploy.provision.member import FOLDERS, USES, Kind
from deploy.provision.names import LOOPBACK, check_host, check_name, hosts_of
from umbel.errors import DeployError
from umbel.signed import canonical
from umbel.tls.identity import KEY

MAX_REQUEST_BYTES = 1 << 18
IDENTITY_FOLDER = "identity"
_PURPOSE = b"umbel signing request\0"


@dataclass(frozen=True)
class SigningRequest:
    """A request whose proofs were checked."""

    kind: Kind
    name: str
    keys: dict[str, PublicKey]
    """TLS public key by use."""
    hosts: dict[str, list[str]]
    supernode: str
    identity: str
    fingerprint: str
    """SHA-256 of the request in hexadecimal: both ends compare it over another channel before it is signed."""


def folder_of(folder: Path, use: str) -> Path:
    """Where the certificate for ``use`` lies in a member's folder."""
    return folder / FOLDERS.get(use, use)


def make_request(folder: Path, kind: Kind, name: str, hosts: Sequence[str] = ()) -> bytes:
    """Makes the keys that ``folder`` does not have yet and returns the request for them.

    Args:
        folder: of the member. Existing keys are kept, so that the same request can be made again.
        kind: site or coordinator.
        name: of the member, as the site's policy has it.
        hosts: DNS names and addresses under which its servers are reached, besides the loopback ones and ``name``.

    Raises:
        DeployError: a name or host is none, or a key cannot be written or read.
    """
    check_name(name)
    wanted = list(dict.fromkeys([*LOOPBACK, *_as_host(name), *(check_host(host) for host in hosts)]))
    requests: dict[str, str] = {}
    for use, server in USES[kind].items():
        key = tls_key(folder_of(folder, use) / KEY)
        requests[use] = pem(make_csr(key, name, use, wanted if server else ())).decode("ascii")
    identity = signing_key(folder / IDENTITY_FOLDER / "identity.key")
    body: dict[str, Any] = {
        "format": 1,
        "kind": kind,
        "name": name,
        "requests": requests,
        "identity": identity.public_key().public_bytes_raw().hex(),
    }
    node = node_key(folder / "supernode") if kind == "site" else None
    if node is not None:
        body["supernode"] = ssh_public(node).decode("ascii")
    statement = _PURPOSE + canonical(body)
    proofs = {"identity": identity.sign(statement).hex()}
    if node is not None:
        proofs["supernode"] = node.sign(statement, ec.ECDSA(hashes.SHA384())).hex()
    return canonical({**body, "proofs": proofs}) + b"\n"


def read_request(data: bytes) -> SigningRequest:
    """Reads a request and checks every proof in it.

    Raises:
        DeployError: it is no request, is larger than 256 KiB, asks for more than its kind may have, or a proof fails.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise DeployError(f"The signing request is larger than {MAX_REQUEST_BYTES} bytes: it is none of ours.")
    try:
        body = json.loads(data)
        proofs = body.pop("proofs")
        kind, name, texts, identity = body["kind"], body["name"], body["requests"], body["identity"]
        expected = {"format", "kind", "name", "requests", "identity"} | ({"supernode"} if kind == "site" else set())
        well_formed = body["format"] == 1 and set(body) == expected and set(texts) == set(USES[kind])
        if not well_formed or not all(isinstance(text, str) for text in (name, identity, *texts.values())):
            raise ValueError
        statement = _PURPOSE + canonical(body)
        supernode = str(body.get("supernode", ""))
        check_name(name)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity)).verify(bytes.fromhex(proofs["identity"]), statement)
        if supernode:
            read_ssh_public(supernode).verify(bytes.fromhex(proofs["supernode"]), statement, ec.ECDSA(hashes.SHA384()))
        csrs = {use: _read_csr(text, name, use) for use, text in texts.items()}
    except DeployError:
        raise
    except InvalidSignature:
        raise DeployError(
            "The signing request does not prove that its sender has the keys: have it made again at the site."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DeployError("This is no signing request: give the file that 'umbel provision request' wrote.") from None
    return SigningRequest(
        kind,
        name,
        {use: key for use, (key, _) in csrs.items()},
        {use: hosts for use, (_, hosts) in csrs.items() if USES[kind][use]},
        supernode,
        identity.lower(),
        hashlib.sha256(statement).hexdigest(),
    )


def _read_csr(text: str, name: str, use: str) -> tuple[PublicKey, list[str]]:
    try:
        csr = x509.load_pem_x509_csr(text.encode("ascii"))
        key = csr.public_key()
        names = [str(item.value) for item in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        extension = next(
            (item.value for item in csr.extensions if item.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME), None
        )
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise DeployError(f"The request for {use!r} cannot be read: have it made again at the site.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DeployError(f"The request for {use!r} has no ECDSA P-256 key: make it with 'umbel provision request'.")
    if not csr.is_signature_valid:
        raise InvalidSignature
    if names != [name]:
        raise DeployError(f"The request for {use!r} names {names!r} and the bundle {name!r}: have it made again.")
    return key, hosts_of(extension) if isinstance(extension, x509.SubjectAlternativeName) else []


def _as_host(name: str) -> list[str]:
    try:
        return [check_host(name)]
    except DeployError:
        return []  # a name with an underscore is no host
