"""Registering and taking out a SuperNode, at a real SuperLink with the provisioned certificate."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.provision import make_request, read_request
from deploy.provision.supernode import register, unregister, unregister_command
from tests.federation import make
from umbel.cli.main import main
from umbel.errors import DeployError

BIN = Path(sys.executable).parent


@pytest.fixture
def authority(tmp_path):
    return make(tmp_path)


def test_only_sites_have_a_supernode_and_only_registered_ones_are_taken_out(authority):
    members = authority.index().members
    with pytest.raises(DeployError, match="'hub' is a coordinator and runs no SuperNode"):
        register(authority, members["hub"], "lo")
    with pytest.raises(DeployError, match="was not registered from here: find its id with 'flwr supernode list lo'"):
        unregister(members["hospital-a"], "lo")


def test_a_revocation_that_the_superlink_did_not_hear_of_can_be_repeated(authority, tmp_path, monkeypatch, capsys):
    authority.sign(read_request(make_request(tmp_path / "far", "site", "far")))
    authority.note_node("hospital-a", "77")
    command = ["provision", "revoke", "hospital-a", "--pki", str(authority.folder), "--superlink", "lo"]

    def fail(line):
        raise DeployError("the SuperLink does not answer")

    monkeypatch.setattr("deploy.provision.supernode._run", fail)
    assert main(command) == 85
    said = capsys.readouterr()
    assert said.err == "the SuperLink does not answer\n"
    assert "Revoked hospital-a" in said.out
    assert "Send the new grants to far" in said.out
    version, asked = authority.index().version, []
    monkeypatch.setattr("deploy.provision.supernode._run", asked.append)
    assert main(command) == 0
    assert asked == [unregister_command("77", "lo")]
    said = capsys.readouterr().out
    assert "hospital-a was revoked on" in said
    assert "Send the new grants to far" in said
    assert "Unregistered its SuperNode 77." in said
    assert authority.index().version == version
    assert main(command[:-2]) == 85  # nothing is left to do without a SuperLink
    assert "was revoked on" in capsys.readouterr().err


@pytest.mark.flower
def test_a_real_superlink_registers_and_forgets(authority, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tls = authority.home("coordinator", "hub") / "superlink"
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink.lo]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{tls / "ca.pem"}"\n'
    )
    for key, value in {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}.items():
        monkeypatch.setenv(key, str(value))
    command = [
        str(BIN / "flower-superlink"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enable-supernode-auth",
        "--isolation",
        "process",
    ]
    command += ["--ssl-ca-certfile", str(tls / "ca.pem"), "--ssl-certfile", str(tls / "cert.pem")]
    command += ["--ssl-keyfile", str(tls / "key.pem"), "--disable-runtime-dependency-installation"]
    with (tmp_path / "log").open("w") as log:
        link = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ, cwd=tmp_path)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert link.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
        node = register(authority, authority.index().members["hospital-a"], "lo")
        assert authority.index().members["hospital-a"].node == node
        assert listed()[node] == "registered"
        member = authority.revoke("hospital-a")
        assert unregister(member, "lo") == node
        assert listed().get(node) in (None, "unregistered")
        with pytest.raises(DeployError, match="'flwr supernode unregister' failed"):
            unregister(member, "lo")
    finally:
        link.terminate()
        link.wait(30)


def listed():
    done = subprocess.run(
        [str(BIN / "flwr"), "supernode", "list", "lo", "--verbose", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {node["node-id"]: node["status"] for node in json.loads(done.stdout)["nodes"]}
