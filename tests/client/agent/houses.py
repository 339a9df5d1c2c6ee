"""What tests of the agent share: a site's folder, its authority, its certificates, and the agent as a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from client.agent.agent import Call
from client.agent.bundle import Bundle
from client.agent.definition import RunDefinition
from client.agent.house import House, init
from client.agent.watch import Watch
from mllm.warm import warm_model
from privacy.secagg import Roster
from privacy.secagg.agreement import site_id
from tests.federated import options
from umbel.config import RunConfig
from umbel.signed import sign, verifying_pem
from umbel.wire import TrainOrder

COORDINATOR = "consortium"
NOISED = "noised"


def policy_for(root: Path, name: str = "hospital-a", **changes) -> dict:
    """A policy that allows the small run of ``tests.federated.options``; ``runs__rank`` changes runs.rank.

    The data that a run without noise takes have no budget; a copy of them, ``noised``, has one.
    """
    if (root / "data").is_dir() and not (root / NOISED).exists():
        shutil.copytree(root / "data", root / NOISED)
    table = {
        "name": name,
        "coordinator": [{"name": COORDINATOR, "socket": "a.sock", "callers": ["courier-a"]}],
        "model": [{"name": str(root / "base")}],
        "data": [
            {
                "name": str(root / folder),
                "root": str(root / folder),
                "columns": ["image", "question", "answer"],
                "epsilon": epsilon,
                "delta": 1e-5,
            }
            for folder, epsilon in (("data", 0.0), (NOISED, 20.0))
        ],
        "runs": {
            "approval": "none",
            "repeat": True,
            "strategies": ["fedit"],
            "rank": 2,
            "steps": 4,
            "rounds": 3,
            "secure-aggregation": False,
            "cohort": 1,
            "privacy": ["step", "none"],
        },
    }
    for key, value in changes.items():
        group, _, inner = key.partition("__")
        if inner:
            table.setdefault(group, {})[inner.replace("_", "-")] = value
        else:
            table[group.replace("_", "-")] = value
    return table


def make_house(folder: Path, table: dict) -> House:
    """A site's folder with keys and this policy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.toml").write_text(tomli_w.dumps(table))
    return init(folder, table["name"])


def enrol(houses: list[House], authority: Ed25519PrivateKey | None = None) -> None:
    """One signed roster over these sites, at each of them."""
    authority = authority or Ed25519PrivateKey.generate()
    members = {site_id(house.policy.name): house.identity().public for house in houses}
    data = Roster(members).to_json().encode()
    for house in houses:
        (house.keys / "authority.pub").write_bytes(verifying_pem(authority.public_key().public_bytes_raw()))
        (house.keys / "roster.json").write_bytes(data)
        (house.keys / "roster.sig").write_bytes(sign(data, authority, "roster", 1))


def flat_options(root: Path, **changes) -> dict:
    """Options of a run that :func:`policy_for` allows; one with noise takes the data with a budget."""
    data = {"task__data": str(root / NOISED)} if changes.get("privacy__unit", "none") != "none" else {}
    return options(root, **{"federation__clients": 2, "federation__minimum": 1, **data, **changes})


def call_for(root: Path, run: str = "1", **changes) -> Call:
    """A call to an agent about the run of :func:`flat_options`."""
    flat = flat_options(root, **{"run__id": "auto", **changes})
    return Call(COORDINATOR, "test", run, json.dumps(flat), Bundle(), Watch(lambda: True))


def definition_for(root: Path, **changes) -> RunDefinition:
    """What that call is about."""
    return RunDefinition(COORDINATOR, RunConfig.from_flat(flat_options(root, **changes)), Bundle())


def order_for(root: Path, round_number: int = 1, **facts) -> TrainOrder:
    """A train order of that run, with the adapter that it begins with."""
    warm = warm_model(RunConfig.from_flat(flat_options(root)))
    return TrainOrder(round_number, warm.tuned.spec.hash, warm.initial, **facts)


class Authority:
    """A certificate authority for one test."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(cert_sign=True), critical=True)
            .sign(self._key, hashes.SHA384())
        )

    def issue(self, folder: Path, name: str, role: str, *, days: float = 1.0, server: bool = False) -> Path:
        """A folder with ca.pem, cert.pem and key.pem; negative ``days`` make an expired certificate."""
        key = ec.generate_private_key(ec.SECP384R1())
        now = datetime.now(UTC)
        use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, name),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            ]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1.5))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        folder.mkdir(parents=True, exist_ok=True)
        pem = serialization.Encoding.PEM
        (folder / "ca.pem").write_bytes(self.certificate.public_bytes(pem))
        (folder / "cert.pem").write_bytes(builder.sign(self._key, hashes.SHA384()).public_bytes(pem))
        descriptor = os.open(folder / "key.pem", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            form = serialization.PrivateFormat.PKCS8
            stream.write(key.private_bytes(pem, form, serialization.NoEncryption()))
        return folder


def _usage(*, cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


class AgentProcess:
    """``umbel site serve`` in a process of its own; ``wait`` blocks until it listens."""

    def __init__(self, house: House) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "UMBEL_DEBUG": "1"}
        self.output = house.folder / "agent.out"
        with self.output.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "umbel", "site", "serve", str(house.folder)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait(self, seconds: float = 180.0) -> AgentProcess:
        deadline = time.monotonic() + seconds
        while "is ready" not in self.output.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.output.read_text())
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.write_text("")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)
