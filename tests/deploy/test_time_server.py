"""The clock of a coordinator against a time server of this test's."""

import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest

from deploy.preflight.time_server import check_time_server
from umbel.cli.main import main
from umbel.errors import DeployError


@contextmanager
def server(ahead=0.0, mode=4, stratum=2, size=48):
    """Answers one request."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.bind(("127.0.0.1", 0))
        stream.settimeout(10)

        def answer():
            asked, peer = stream.recvfrom(512)
            assert asked[0] == 0x23
            assert len(asked) == 48
            now = time.time() + ahead + 2_208_988_800
            body = bytes([0x20 | mode, stratum]) + bytes(38) + struct.pack("!II", int(now), int(now % 1 * 2**32))
            stream.sendto(body[:size], peer)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{stream.getsockname()[1]}"
        thread.join()


def test_a_clock_that_agrees():
    with server() as address:
        assert check_time_server(address) == f"0.0 s from {address}"


@pytest.mark.parametrize("ahead", [-60.0, 60.0])
def test_clocks_that_differ(ahead):
    with server(ahead) as address, pytest.raises(DeployError, match=r"differ by 60 s.*set this one by NTP"):
        check_time_server(address)


@pytest.mark.parametrize("wrong", [{"mode": 3}, {"stratum": 0}, {"stratum": 16}, {"size": 20}])
def test_a_server_that_knows_no_time(wrong):
    with server(**wrong) as address, pytest.raises(DeployError, match="tells no time"):
        check_time_server(address)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no.such.host.invalid", "127.0.0.1:99999", ""])
def test_a_server_that_does_not_answer(address, monkeypatch):
    monkeypatch.setattr("deploy.preflight.time_server._TIMEOUT", 0.2)
    with pytest.raises(DeployError, match="does not answer") as caught:
        check_time_server(address)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path, capsys):
    with server() as address:
        arguments = ["--home", str(tmp_path), "--disk", "0.001", "--memory", "0.001"]
        assert main(["preflight", "coordinator", *arguments, "--ntp", address]) == 0
    assert "ok    clock        0.0 s from" in capsys.readouterr().out
