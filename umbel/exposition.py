"""Exposition: figures of a process for Prometheus, over HTTP, on an address that must be chosen.

Only ``GET /metrics`` is answered. The figures are no secret of the protocol, but they are nobody's business outside:
the default address is the loopback, and a certificate can be given for any other.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from umbel.errors import ConfigError, DeployError

HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where figures are served.

    Attributes:
        host: address to listen on.
        port: 0 to 65535; 0 takes a free one.
        certificate, key: PEM files, both or none; with them HTTPS is spoken.
        clients: PEM file of the CA whose client certificates are asked for, or None to ask for none.

    Raises:
        ConfigError: the port is none, only one of certificate and key is given, or clients are to be checked
            without a certificate.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    clients: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= HIGHEST_PORT:
            raise ConfigError(f"Port {self.port} does not exist: give a number from 0 (any free one) to 65535.")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("A certificate for the metrics was given without its key, or the other way: give both.")
        if self.clients is not None and self.certificate is None:
            raise ConfigError(
                "Clients of the metrics can be checked over HTTPS only: give a certificate and a key too."
            )

    @classmethod
    def parse(cls, text: str, **more: Any) -> Endpoint:
        """``HOST:PORT``, ``[IPV6]:PORT`` or ``PORT``.

        Raises:
            ConfigError: the text is none of these.
        """
        host, _, port = text.rpartition(":")
        if not port.isdigit():
            raise ConfigError(f"{text!r} is no address for metrics: write HOST:PORT, as 127.0.0.1:9464.")
        return cls(host.strip("[]") or "127.0.0.1", int(port), **more)


class Exposition:
    """A running endpoint; a context manager."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Exposition:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def expose(registry: CollectorRegistry, endpoint: Endpoint) -> Exposition:
    """Serves ``registry`` from a thread of this process.

    Raises:
        DeployError: the address is taken or not this machine's, or a certificate cannot be loaded.
    """
    try:
        server, thread = start_http_server(
            endpoint.port,
            endpoint.host,
            registry,
            certfile=_text(endpoint.certificate),
            keyfile=_text(endpoint.key),
            client_cafile=_text(endpoint.clients),
            client_auth_required=endpoint.clients is not None,
        )
    except OSError as error:  # ssl.SSLError is one
        raise DeployError(
            f"Metrics cannot be served on {endpoint.host}:{endpoint.port} ({error.strerror or error}): choose an "
            "address of this machine and a free port, and a certificate with its own key."
        ) from None
    return Exposition(server, thread)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
