"""Exposition: figures of a process for Prometheus, over HTTP, on an address or a Unix socket that must be chosen.

Only ``GET /metrics`` is answered. The figures are no secret of the protocol, but they are nobody's business outside:
the default address is the loopback, and a certificate can be given for any other. A process without a network serves
them on a Unix socket, which its owner may open, and the group of its folder where the folder lets that group in alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server

from umbel.errors import ConfigError, DeployError

HIGHEST_PORT = 65535
_UNIX = "unix:"
_LONGEST = 100
"""Bytes of a socket's path; Linux allows 107."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where figures are served.

    Attributes:
        host: address to listen on.
        port: 0 to 65535; 0 takes a free one.
        certificate, key: PEM files, both or none; with them HTTPS is spoken.
        clients: PEM file of the CA whose client certificates are asked for, or None to ask for none.
        socket: full path of a Unix socket to listen on instead of host and port.

    Raises:
        ConfigError: the port is none, only one of certificate and key is given, clients are to be checked without a
            certificate, or the socket's path is relative, too long, or given with a certificate.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    clients: Path | None = None
    socket: Path | None = None

    def __post_init__(self) -> None:
        if self.socket is not None:
            if not self.socket.is_absolute() or len(os.fsencode(self.socket)) > _LONGEST:
                raise ConfigError(
                    f"{str(self.socket)!r} is no path for the socket of metrics: write unix: and a full path of at "
                    f"most {_LONGEST} bytes, as unix:/run/umbel-agent/metrics.sock."
                )
            if self.certificate is not None:
                raise ConfigError("A socket of metrics speaks no TLS: leave the certificate out, its mode protects it.")
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
        """``HOST:PORT``, ``[IPV6]:PORT``, ``PORT`` or ``unix:/PATH``.

        Raises:
            ConfigError: the text is none of these.
        """
        if text.startswith(_UNIX):
            return cls(socket=Path(text.removeprefix(_UNIX)), **more)
        host, _, port = text.rpartition(":")
        if not port.isdigit():
            raise ConfigError(
                f"{text!r} is no address for metrics: write HOST:PORT, as 127.0.0.1:9464, or unix:/PATH of a socket."
            )
        return cls(host.strip("[]") or "127.0.0.1", int(port), **more)


class Exposition:
    """A running endpoint; a context manager."""

    def __init__(self, server: WSGIServer, thread: threading.Thread, path: Path | None = None) -> None:
        self._server = server
        self._thread = thread
        self._path = path

    @property
    def port(self) -> int:
        """The port that is listened on, 0 on a Unix socket."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stops answering and frees the port or the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Exposition:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def expose(registry: CollectorRegistry, endpoint: Endpoint) -> Exposition:
    """Serves ``registry`` from a thread of this process.

    Raises:
        DeployError: the address is taken or not this machine's, the socket cannot be made, or a certificate cannot be
            loaded.
    """
    if endpoint.socket is not None:
        return _expose_socket(registry, endpoint.socket)
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


class _SocketHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet, as the server on a port does."""


class _SocketServer(ThreadingMixIn, WSGIServer):
    address_family = socket.AF_UNIX
    daemon_threads = True

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks for host and port
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, _ = super().get_request()
        return request, ("unix", 0)  # the handler asks for a host, and the peer of a socket has none


def _expose_socket(registry: CollectorRegistry, path: Path) -> Exposition:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _clear(path)
        before = os.umask(0o077)  # from its first moment nobody else may open it
        try:
            server = _SocketServer(str(path), _SocketHandler)  # type: ignore[arg-type]  # typeshed knows ports alone
        finally:
            os.umask(before)
        shared = stat.S_IMODE(path.parent.stat().st_mode) & 0o011 == 0o010
        path.chmod(0o660 if shared else 0o600)
    except OSError as error:
        raise DeployError(
            f"Metrics cannot be served on unix:{path} ({error.strerror or error}): choose a path in a folder of this "
            "user's where nothing is."
        ) from None
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return Exposition(server, thread, path)


def _clear(path: Path) -> None:
    """Removes the socket of a process that is gone; anything else at its place makes the bind fail."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.connect(str(path))
        return
    path.unlink()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
