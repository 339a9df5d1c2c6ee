"""A site's figures on a Unix socket: for an agent that has no network."""

import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from umbel.errors import ConfigError, DeployError
from umbel.exposition import Endpoint, expose


@pytest.fixture
def folder():
    """Short, because the path of a socket is bounded."""
    with tempfile.TemporaryDirectory(prefix="m") as made:
        yield Path(made)


@pytest.fixture
def registry():
    made = CollectorRegistry()
    Counter("umbel_tries", "Tries.", registry=made).inc(3)
    return made


def get(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(path))
        stream.sendall(b"GET /metrics HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: stream.recv(1 << 16), b"")).decode()


@pytest.mark.parametrize(("mode", "expected"), [(0o700, 0o600), (0o710, 0o660), (0o755, 0o600)])
def test_the_figures_over_a_socket_that_is_gone_afterwards(folder, registry, mode, expected):
    folder.chmod(mode)
    path = folder / "metrics.sock"
    with expose(registry, Endpoint.parse(f"unix:{path}")) as running:
        assert running.port == 0
        assert stat.S_IMODE(path.stat().st_mode) == expected
        for _ in range(2):
            said = get(path)
            assert " 200 OK" in said.splitlines()[0]
            assert "umbel_tries_total 3.0" in said
    assert not path.exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_the_documented_line_reads_them(folder, registry):
    path = folder / "new" / "metrics.sock"
    with expose(registry, Endpoint.parse(f"unix:{path}")):
        line = ["curl", "-sf", "--unix-socket", str(path), "http://site/metrics"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert "umbel_tries_total 3.0" in done.stdout
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(folder, registry):
    path = folder / "metrics.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with expose(registry, Endpoint.parse(f"unix:{path}")):
        with pytest.raises(DeployError, match="Address already in use"):
            expose(registry, Endpoint.parse(f"unix:{path}"))
        assert "umbel_tries_total" in get(path)
    path.write_text("mine")
    with pytest.raises(DeployError, match="cannot be served on unix:"):
        expose(registry, Endpoint.parse(f"unix:{path}"))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("text", ["unix:", "unix:relative", "unix:/" + "a" * 100])
def test_paths_that_are_none(text):
    with pytest.raises(ConfigError, match="is no path for the socket of metrics"):
        Endpoint.parse(text)


def test_a_socket_takes_no_certificate(folder):
    with pytest.raises(ConfigError, match="speaks no TLS"):
        Endpoint.parse(f"unix:{folder}/m", certificate=folder / "c", key=folder / "k")
