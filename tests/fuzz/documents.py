"""Documents, certificates, archives and images: what travels as files, or is signed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from PIL import Image
from safetensors.numpy import save

from client.agent.audit_log import read_lines, sign_line
from client.agent.bundle import read_bundle
from client.agent.policy import read_policy
from client.agent.review import make_definition
from coordinator.release.manifest import HEAD_PURPOSE, PURPOSE, Head, parse_manifest, read_head, read_manifest
from coordinator.release.rules import check_content
from deploy.archive import read_archive, write_archive
from deploy.bundle import SUMS, verify_bundle
from deploy.provision import Authority, accept_grant, make_request, read_grant, read_request
from deploy.provision.keys import read_ssh_public
from mllm.tasks.example import ImageSource
from mllm.tasks.folder import parse
from privacy.accounting import Event
from privacy.ledger.entry import Entry
from privacy.secagg import SimulationAuthority
from privacy.secagg.identity import Identity, Roster
from privacy.terms import Mechanism, Relation, Sampler, Unit
from tests.fuzz.target import SCRATCH, Target, as_file
from tests.release_manifest import MANIFEST
from umbel.cli.options import parse_overrides
from umbel.config import RunConfig
from umbel.keyfile import read_public
from umbel.signed import canonical, read_signing_key, read_verifying_key, sign, signing_pem, verify, verifying_pem
from umbel.signers import parse_signers, write_signers
from umbel.tls.identity import parse_certificate
from umbel.tls.peer import read_peer
from umbel.tls.revocation import MAX_CRL_BYTES, RevocationList

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
PIXELS = 10_000
_MANIFEST = canonical(MANIFEST)

_POLICY: dict[str, Any] = {
    "name": "a",
    "coordinator": [{"name": "hub", "socket": "/run/umbel/agent.sock"}],
    "model": [{"name": "base", "path": "/srv/base"}],
    "data": [{"name": "scans", "root": "/srv/scans", "columns": ["image"], "epsilon": 8.0, "delta": 1e-5}],
    "runs": {"strategies": ["ffa-lora"], "rank": 4, "steps": 4, "rounds": 6, "cohort": 3, "privacy": ["step"]},
}


def targets() -> Iterator[Target]:
    """All of them."""
    yield from _signed()
    yield from _enrolment()
    yield from _files()
    yield from _images()


def _signed() -> Iterator[Target]:
    yield Target("manifest", parse_manifest, (_MANIFEST,))
    yield Target(
        "manifest-signed", lambda data: read_manifest(data, sign(data, KEY, PURPOSE, 1), {PUBLIC}), (_MANIFEST,)
    )
    head = Head(name="easy", version=3, sequence=7, time=1).to_bytes()
    yield Target("head-signed", lambda data: read_head(data, sign(data, KEY, HEAD_PURPOSE, 7), {PUBLIC}), (head,))
    yield Target("signature", lambda data: verify(b"x", data, {PUBLIC}, "roster"), (sign(b"x", KEY, "roster", 3),))
    yield Target("signers", parse_signers, (write_signers({"hub": PUBLIC, "b": bytes(32)}),))
    roster = SimulationAuthority(bytes(16)).roster((1, 2, 3)).to_json().encode()
    yield Target("roster", lambda data: Roster.from_json(data.decode("latin-1")), (roster,))


def _enrolment() -> Iterator[Target]:
    """Requests, grants and certificates of a real authority."""
    authority, _ = Authority.init(SCRATCH / "pki", "demo")
    folder = SCRATCH / "site"
    request = make_request(folder, "site", "hospital-a")
    other = make_request(SCRATCH / "hub", "coordinator", "hub")
    grant = authority.sign(read_request(request))
    authority.sign(read_request(other))
    yield Target("signing-request", read_request, (request, other), base=4 << 20)
    yield Target("grant", read_grant, (grant.to_bytes(),))

    def accepted(data: bytes) -> None:
        """A grant that says of itself the fingerprint that was told: everything in it is looked at."""
        found = read_grant(data)
        accept_grant(folder, found, trust=found.fingerprint)

    yield Target("grant-accepted", accepted, (grant.to_bytes(),), base=4 << 20)
    pem = grant.certificates["agent"].encode()
    yield Target("certificate-pem", read_peer.__wrapped__, (pem, authority.ca_pem))
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    yield Target("certificate-der", lambda data: read_peer.__wrapped__(_pem(data, "CERTIFICATE")), (der,))
    yield Target("certificate-file", as_file(lambda path: parse_certificate(read_public(path), path)), (pem,))
    crl = grant.crl.encode()
    issuer = x509.load_pem_x509_certificate(authority.ca_pem)
    revoked = as_file(lambda path: RevocationList(path, issuer).serials())
    yield Target("revocations", revoked, (crl,), base=2 * MAX_CRL_BYTES)
    inner = x509.load_pem_x509_crl(crl).public_bytes(Encoding.DER)
    yield Target("revocations-der", lambda data: revoked(_pem(data, "X509 CRL")), (inner,), base=2 * MAX_CRL_BYTES)
    supernode = json.loads(request)["supernode"].encode()
    yield Target("supernode-key", lambda data: read_ssh_public(data.decode("latin-1")), (supernode,))
    public = verifying_pem(PUBLIC)
    assert load_pem_public_key(public)
    yield Target("verifying-key", lambda data: read_verifying_key(data, "key"), (public,))
    yield Target("signing-key", lambda data: read_signing_key(data, "key"), (signing_pem(KEY),))


def _files() -> Iterator[Target]:
    yield Target(
        "safetensors",
        as_file(check_content, ".safetensors"),
        (save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.uint8)}, {"format": "pt"}),),
    )
    yield Target("release-json", as_file(check_content, ".json"), (b'{"peft_type": "LORA", "r": [4, 1.5, null]}',))
    yield Target("release-toml", as_file(check_content, ".toml"), (b'a = 1\n[b]\nc = ["x", 2.5]\n',))
    options = "\n".join(f"{key} = {json.dumps(value)}" for key, value in sorted(RunConfig().to_flat().items())[:20])
    yield Target(
        "run-definition",
        as_file(lambda path: RunConfig.from_flat(parse_overrides([str(path)])), ".toml"),
        (options.encode(), b"[federation]\nrounds = 3\n[lora]\nrank = 4\n"),
    )
    house: Any = SimpleNamespace(policy=SimpleNamespace(coordinators=[SimpleNamespace(name="hub")]))
    reviewed = as_file(lambda path: make_definition(house, path).hash, ".toml")
    app = b"[tool.flwr.app.config]\nfederation.rounds = 3\n"
    yield Target("run-review", reviewed, (b"[federation]\nrounds = 3\n[lora]\nrank = 4\n", app))
    yield Target("site-policy", as_file(read_policy, ".toml"), (tomli_w.dumps(_POLICY).encode(),))
    yield Target("flower-bundle", as_file(read_bundle, ".fab"), (_zip(), _zip(zipfile.ZIP_STORED)), base=4 << 20)
    kept = SCRATCH / "backup.tar"
    kept.unlink(missing_ok=True)
    write_archive(kept, {"a/ledger.sqlite": ("ledger", b"x" * 700), "b.jsonl": ("log", b"")})
    yield Target("backup", as_file(read_archive, ".tar"), (kept.read_bytes(), _tar()), base=4 << 20)
    yield Target("bundle-sums", _sums(), (f"{hashlib.sha256(b'').hexdigest()}  wheels/x.whl\n".encode(),))
    event = Event(Mechanism.GAUSSIAN, Sampler.POISSON, Relation.ADD_REMOVE, 1.0, 0.5)
    entry = Entry(1, "reserved", "2026-01-01T00:00:00", "scans", Unit.EXAMPLE, "run", 1, event).to_json().encode()
    yield Target("ledger-line", lambda data: Entry.from_json(data.decode("latin-1")), (entry,))
    line = sign_line({"number": 1, "previous": "", "kind": "asked"}, Identity(1, bytes(range(32))))
    log = SCRATCH / "log"
    log.mkdir(exist_ok=True)
    yield Target("audit-log", _in_folder(log / "audit-000001.jsonl", lambda: list(read_lines(log))), (line, line * 2))
    example = {"question": "q", "answer": "a", "image": ["a.png", "b/c.png"], "type": "x", "n": [1, 2.5]}
    root = SCRATCH.resolve()
    yield Target("data-line", lambda data: parse(root, "train.jsonl", 1, data), (json.dumps(example).encode(),))


def _images() -> Iterator[Target]:
    """Files of every common format; a declared size above the limit is refused before a pixel is decoded."""
    picture = Image.fromarray(np.arange(24 * 20 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 24, 3))
    forms = {"PNG": {}, "JPEG": {"progressive": True}, "GIF": {}, "WEBP": {}, "TIFF": {"compression": "tiff_deflate"},
             "BMP": {}, "PPM": {}, "JPEG2000": {}, "TGA": {}, "ICO": {}}  # fmt: skip
    for form, options in forms.items():
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        read = as_file(lambda path: ImageSource(path, max_pixels=PIXELS).open(), f".{form.lower()}")
        yield Target(f"image-{form.lower()}", read, (stream.getvalue(),), base=16 << 20)


def _pem(der: bytes, label: str) -> bytes:
    return f"-----BEGIN {label}-----\n".encode() + base64.encodebytes(der) + f"-----END {label}-----\n".encode()


def _zip(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("pyproject.toml", "[project]\n" * 20)
        archive.writestr("client/app.py", "x = 1\n")
    return stream.getvalue()


def _tar() -> bytes:
    """A whole archive without a manifest is no backup; with one that promises another size it is none either."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("manifest.json")
        body = json.dumps({"format": 1, "made": "x", "umbel": "0", "files": []}).encode()
        info.size, info.pax_headers = len(body), {"comment": "c" * 50}
        archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def _sums() -> Callable[[bytes], Any]:
    target = SCRATCH / "bundle"
    shutil.rmtree(target, ignore_errors=True)
    (target / "wheels").mkdir(parents=True)
    (target / "wheels" / "x.whl").write_bytes(b"")
    return _in_folder(target / SUMS, lambda: verify_bundle(target))


def _in_folder(path: Path, read: Callable[[], Any]) -> Callable[[bytes], Any]:
    def reads(data: bytes) -> Any:
        path.write_bytes(data)
        return read()

    return reads
