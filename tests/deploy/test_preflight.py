"""Preflight: each failing check says how to mend it, and hides no other."""

import json
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from deploy import preflight
from deploy.preflight import machine
from umbel.cli.main import main
from umbel.errors import DeployError


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def authority():
    key = ec.generate_private_key(ec.SECP256R1())
    return key, issue(key, "CA", key, ca=True)


def issue(public_of, common, signer, *, issuer="CA", ca=False, host=None, days=30.0, start=None):
    begin = start or datetime.now(UTC) - timedelta(minutes=5)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common))
        .issuer_name(name(issuer))
        .public_key(public_of.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if host:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def identity(folder, days=30.0):
    key, ca = authority()
    own = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "cert.pem").write_bytes(
        issue(own, "hospital-a", key, host="localhost", days=days).public_bytes(Encoding.PEM)
    )
    (folder / "key.pem").write_bytes(pem(own))
    (folder / "key.pem").chmod(0o600)
    return folder


class Coordinator:
    """A server that answers the fleet's and the operator's path as told, at a clock as told."""

    def __init__(self, folder, *, control=404, fleet=422, ahead=0.0):
        from email.utils import format_datetime

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.send_response_only(control if self.path.startswith("/v1/control") else fleet)
                self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"localhost:{self.server.server_port}"
        self.ca = folder / "ca.pem"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return identity(tmp_path_factory.mktemp("tls"))


def test_a_coordinator_in_order(tls):
    with Coordinator(tls) as there:
        assert there.address in preflight.check_reachable(there.address, there.ca)
        assert f"s from {there.address}" in preflight.check_clock(there.address, there.ca)
        assert "404" in preflight.check_closed(there.address, there.ca)


@pytest.mark.parametrize("status", [200, 400, 401, 415, 422, 500])
def test_a_control_interface_that_answers_sites(tls, status):
    with Coordinator(tls, control=status) as there, pytest.raises(DeployError, match="expose /v1/fleet/ alone"):
        preflight.check_closed(there.address, there.ca)


@pytest.mark.parametrize("ahead", [-60.0, 60.0])
def test_clocks_that_differ(tls, ahead):
    with Coordinator(tls, ahead=ahead) as there, pytest.raises(DeployError, match="set both by NTP"):
        preflight.check_clock(there.address, there.ca)


@pytest.mark.parametrize("status", [404, 502])
def test_no_fleet_behind_the_address(tls, status):
    with Coordinator(tls, fleet=status) as there, pytest.raises(DeployError, match=f"answers {status}"):
        preflight.check_reachable(there.address, there.ca)


def test_a_foreign_authority(tls, tmp_path):
    other = identity(tmp_path / "other")
    with Coordinator(tls) as there, pytest.raises(DeployError, match=r"not to be trusted.*this federation's"):
        preflight.check_reachable(there.address, other / "ca.pem")


def test_nobody_listens_no_name_no_tls_no_authority(tls, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    with pytest.raises(DeployError, match="check that it runs"):
        preflight.check_reachable(f"localhost:{port}", tls / "ca.pem")
    with pytest.raises(DeployError, match=r"name no\.such\.host\.invalid is not known"):
        preflight.check_reachable("no.such.host.invalid:1", tls / "ca.pem")
    plain = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=plain.serve_forever, daemon=True).start()
    with pytest.raises(DeployError, match=r"does not speak TLS|cannot be reached"):
        preflight.check_reachable(f"localhost:{plain.server_port}", tls / "ca.pem")
    plain.shutdown()
    plain.server_close()
    (tmp_path / "ca.pem").write_text("no PEM")
    with pytest.raises(DeployError, match="no PEM certificate"):
        preflight.check_reachable("localhost:1", tmp_path / "ca.pem")


def test_certificates(tls, tmp_path):
    assert "hospital-a" in preflight.check_identity(tls)
    with pytest.raises(DeployError, match="umbel provision renew"):
        preflight.check_identity(identity(tmp_path / "soon", days=2))
    open_to_all = identity(tmp_path / "open")
    (open_to_all / "key.pem").chmod(0o644)
    with pytest.raises(DeployError, match=r"key\.pem"):
        preflight.check_identity(open_to_all)


def ssh_key(path, *options):
    subprocess.run(["ssh-keygen", "-q", *options, "-N", "", "-f", str(path)], check=True)
    return path


def test_node_keys(tmp_path):
    assert preflight.check_node_key(ssh_key(tmp_path / "good", "-t", "ecdsa", "-b", "384")) == "ECDSA P-384"
    for kind in (("-t", "ecdsa", "-b", "256"), ("-t", "ed25519")):
        with pytest.raises(DeployError, match="no ECDSA P-384"):
            preflight.check_node_key(ssh_key(tmp_path / kind[-1], *kind))
    (tmp_path / "pem").write_bytes(pem(ec.generate_private_key(ec.SECP384R1())))
    (tmp_path / "pem").chmod(0o600)
    with pytest.raises(DeployError, match="no OpenSSH private key"):
        preflight.check_node_key(tmp_path / "pem")
    (tmp_path / "good").chmod(0o640)
    with pytest.raises(DeployError):
        preflight.check_node_key(tmp_path / "good")


def test_disk_memory_and_ports(tmp_path):
    assert "GiB free" in preflight.check_folder(tmp_path / "not" / "yet" / "there", 0.001)
    assert not (tmp_path / "not").exists()
    with pytest.raises(DeployError, match="free some or choose another disk"):
        preflight.check_folder(tmp_path, 1e9)
    with pytest.raises(DeployError, match="cannot be written"):
        preflight.check_folder(machine.Path("/proc"), 0)
    assert "available" in preflight.check_memory(0.001)
    with pytest.raises(DeployError, match="larger machine"):
        preflight.check_memory(1e9)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match="stop what listens there"):
            preflight.check_port(f"127.0.0.1:{port}")
    assert preflight.check_port(f"127.0.0.1:{port}").endswith("is free")
    with pytest.raises(DeployError, match="an address of this machine"):
        preflight.check_port("192.0.2.1:9443")


def test_a_base_that_does_not_fit(tmp_path):
    with pytest.raises(DeployError, match="no safetensors"):
        preflight.check_model(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.truncate(1 << 20)
    assert preflight.needed_memory(1 << 20) == pytest.approx(machine.FRAMEWORKS + 1.7 * (1 << 20), abs=1)
    assert "GiB" in preflight.check_model(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(1 << 42)  # sparse
    with pytest.raises(DeployError, match="use a smaller base"):
        preflight.check_model(tmp_path)


@pytest.mark.parametrize(("name", "gib"), [("cobra", "64.8"), ("vl-mamba", "56.5"), ("cobra=/no/such/weights", "64.8")])
def test_a_system_of_the_zoo_is_judged_by_its_traced_step_before_anything_is_fetched(name, gib, monkeypatch, capsys):
    from mllm import checkpoint

    monkeypatch.setattr(checkpoint, "resolve", lambda name: pytest.fail(f"{name} was fetched"))
    for there, code in ((40 << 30, 85), (80 << 30, 0)):
        monkeypatch.setattr(machine, "memory_limit", lambda there=there: (there, there))
        arguments = ["preflight", "site", "--home", "/tmp", "--disk", "0", "--memory", "0", "--model", name, "--json"]
        assert main(arguments) == code
        said = {line["check"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}["base"]
        assert said["ok"] == (code == 0)
        assert f"{gib} GiB" in said["said"]
        if code:
            assert "40.0 of 40.0 are available: set model.gradient-checkpointing (" in said["said"]


def test_a_family_of_transformers_is_judged_by_the_size_of_its_weights_before_they_are_fetched(monkeypatch, capsys):
    from mllm import checkpoint

    monkeypatch.setattr(checkpoint, "resolve", lambda name: pytest.fail(f"{name} was fetched"))
    arguments = ["preflight", "site", "--home", "/tmp", "--disk", "0", "--memory", "0", "--model", "llava", "--json"]
    for there, code in ((20 << 30, 85), (24 << 30, 0)):
        monkeypatch.setattr(machine, "memory_limit", lambda there=there: (there, there))
        assert main(arguments) == code
        said = {line["check"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}["base"]
        assert said["ok"] == (code == 0)
        assert "23.4" in said["said"]


def test_the_command_lists_every_finding_and_fails(tls, tmp_path, capsys):
    arguments = ["preflight", "coordinator", "--home", str(tmp_path), "--disk", "0.001", "--memory", "1e9", "--json"]
    assert main([*arguments, "--identity", str(tls), "--model", str(tmp_path / "none")]) == 85
    shown = capsys.readouterr()
    found = {line["check"]: line["ok"] for line in map(json.loads, shown.out.splitlines())}
    assert found == {"disk": True, "memory": False, "base": False, "certificate": True}
    assert "2 of 4 checks failed" in shown.err


def test_a_site_in_order(tls, tmp_path, capsys):
    key = ssh_key(tmp_path / "node", "-t", "ecdsa", "-b", "384")
    with Coordinator(tls) as there:
        arguments = ["--home", str(tmp_path), "--disk", "0.001", "--memory", "0.001", "--identity", str(tls)]
        where = ["--coordinator", there.address, "--ca", str(there.ca), "--node-key", str(key)]
        assert main(["preflight", "site", *arguments, *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("ok  ") for line in lines)


def test_a_coordinator_without_its_authority_is_wrong_usage(capsys):
    assert main(["preflight", "site", "--coordinator", "a:1"]) == 85
    assert "--ca" in capsys.readouterr().err
