"""The client's end: one handshake that says in words what is wrong, then a channel to exactly that server."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from umbel.errors import DeployError
from umbel.tls.identity import CERTIFICATE, KEY, TlsIdentity, load_identity
from umbel.tls.peer import describe

_EXPIRED, _NOT_YET, _NAME, _ADDRESS = 10, 9, 62, 64  # X509_V_ERR_* of OpenSSL


def channel_credentials(identity: TlsIdentity, server: bytes | None = None) -> grpc.ChannelCredentials:
    """Credentials for one channel.

    Args:
        identity: of the client.
        server: PEM of the one server certificate to accept (:func:`probe` returns it); None accepts any that the
            authority issued, revoked ones included, because gRPC's Python interface reads no revocation list.
    """
    return grpc.ssl_channel_credentials(server or identity.ca, identity.key, identity.certificate)


def open_channel(
    address: str,
    folder: Path | str,
    *,
    role: str | None = None,
    timeout: float = 10.0,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """A channel to ``address`` that accepts only the server certificate which was checked first.

    When the server renews its certificate, new connections of this channel fail: open another channel.

    Args:
        address: ``host:port``, ``[::1]:port`` for IPv6.
        folder: of the client's identity.
        role: that the server's certificate must have; None takes any.
        timeout: seconds for the check.
        options: of the channel; no proxy from the environment is used unless they say so.

    Raises:
        DeployError: see :func:`probe` and :func:`umbel.tls.load_identity`.
    """
    identity = load_identity(folder, "client")
    server = probe(address, identity, role=role, timeout=timeout)
    every = [("grpc.enable_http_proxy", 0), *options]
    return grpc.secure_channel(address, channel_credentials(identity, server), options=every)


def probe(address: str, identity: TlsIdentity, *, role: str | None = None, timeout: float = 10.0) -> bytes:
    """Shakes hands with the server at ``address``; returns its certificate (PEM).

    Raises:
        DeployError: nobody listens, the port speaks no TLS, the server's certificate is expired, revoked, of another
            authority, of another name or role, or the server refuses ours.
    """
    host, port = split_address(address)
    context = _context(identity)
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            der = secure.getpeercert(binary_form=True) or b""
            # In TLS 1.3 a client learns only from the first bytes whether its own certificate was accepted;
            # an HTTP/2 server sends its settings at once.
            accepted = secure.recv(1)
    except ssl.SSLCertVerificationError as error:
        raise DeployError(_wrong_certificate(address, host, error)) from None
    except ssl.SSLError as error:
        raise DeployError(_no_handshake(address, identity, error)) from None
    except TimeoutError:
        raise DeployError(f"{address} did not answer within {timeout:g} s: check address, firewall and port.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DeployError(
            f"{address} cannot be reached ({reason}): check that the service runs there and the port is open."
        ) from None
    if not accepted:
        raise DeployError(_refused(address, identity))
    certificate = x509.load_der_x509_certificate(der)
    peer = describe(certificate)
    identity.revoked.check(peer.serial, peer.name)
    if role is not None and peer.role != role:
        raise DeployError(
            f"{address} shows the certificate of {peer.name!r} for {peer.role or 'no role'!r}, and {role!r} was "
            "expected: check the address."
        )
    return certificate.public_bytes(Encoding.PEM)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``.

    Raises:
        DeployError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or len(address) > 512:
        raise DeployError(f"{address!r} is no address: write host:port, for example release.example.org:8444.")
    return host, int(port)


def _context(identity: TlsIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=identity.ca.decode("ascii"))
        context.load_cert_chain(identity.folder / CERTIFICATE, identity.folder / KEY)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise DeployError(f"The identity in {identity.folder} cannot be used ({error}): enrol again.") from None
    return context


def _wrong_certificate(address: str, host: str, error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return f"The certificate of {address} has expired: its operator renews it with 'umbel provision renew'."
    if code == _NOT_YET:
        return f"The certificate of {address} is not valid yet: set the clocks of both machines."
    if code in (_NAME, _ADDRESS):
        return (
            f"The certificate of {address} is not for {host!r}: use a name that it carries, or issue it with "
            f"--host {host}."
        )
    return (
        f"The certificate of {address} was not issued by the authority pinned here ({error.verify_message}): it "
        "belongs to another federation, or its authority was replaced; do not connect before you know which."
    )


def _no_handshake(address: str, identity: TlsIdentity, error: ssl.SSLError) -> str:
    reason = str(error.reason or error)
    if "ALERT" in reason:
        return _refused(address, identity)
    return f"{address} does not speak TLS ({reason}): give the TLS port of the service."


def _refused(address: str, identity: TlsIdentity) -> str:
    return (
        f"{address} refused the certificate of {identity.peer.name!r}: it comes from another authority, or the "
        "server's clock says that it has expired; enrol with this server's federation or renew."
    )
