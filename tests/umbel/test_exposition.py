import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from umbel.errors import ConfigError, DeployError
from umbel.exposition import Endpoint, expose


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9464", "127.0.0.1", 9464),
        ("[::1]:80", "::1", 80),
        ("9464", "127.0.0.1", 9464),
        (":1", "127.0.0.1", 1),
    ],
)
def test_addresses(text, host, port):
    assert Endpoint.parse(text) == Endpoint(host, port)


@pytest.mark.parametrize("text", ["", "host", "host:", "host:port", "host:-1", "h:99999"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError):
        Endpoint.parse(text)


def test_half_a_certificate_is_refused():
    with pytest.raises(ConfigError, match="give both"):
        Endpoint(certificate=Path("a"))
    with pytest.raises(ConfigError, match="over HTTPS only"):
        Endpoint(clients=Path("a"))


def test_a_taken_port_is_said_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DeployError, match="free port"):
            expose(CollectorRegistry(), Endpoint(port=taken.getsockname()[1]))


def test_a_certificate_that_is_none(tmp_path):
    for name in ("cert", "key"):
        (tmp_path / name).write_text("no PEM")
    with pytest.raises(DeployError, match="a certificate with its own key"):
        expose(CollectorRegistry(), Endpoint(certificate=tmp_path / "cert", key=tmp_path / "key"))
