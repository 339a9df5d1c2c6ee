"""The server's end: credentials that follow the files, and a check of the caller on every call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import grpc

from umbel.errors import DeployError
from umbel.rpc import rewrapped
from umbel.tls.identity import CA, CERTIFICATE, KEY, TlsIdentity, load_identity
from umbel.tls.peer import Peer, peer_of
from umbel.tls.revocation import RevocationError

_LOG = logging.getLogger(__name__)


def server_credentials(folder: Path | str) -> grpc.ServerCredentials:
    """Credentials of a server that asks every caller for a certificate of the authority in ``folder``.

    The files are looked at before each handshake, so a renewed certificate needs no restart. Files that cannot be used
    leave the previous certificate in place and a warning in the log. A changed ``ca.pem`` is never taken over: another
    authority needs a restart by hand.

    Raises:
        DeployError: the folder cannot be used (see :func:`umbel.tls.load_identity`).
    """
    identity = load_identity(folder, "server")
    follow = _Follow(identity)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(identity),
        follow,  # type: ignore[arg-type]  # may return None for "no change", as gRPC's documentation says
        require_client_authentication=True,
    )


class _Follow:
    """Called by gRPC before each handshake: the new configuration, or None to keep the old one."""

    def __init__(self, identity: TlsIdentity) -> None:
        self._folder, self._ca = identity.folder, identity.ca
        self._seen = self._stamps()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            identity = load_identity(self._folder, "server")
            if identity.ca != self._ca:
                raise DeployError(f"{self._folder / CA} was replaced: put the pinned authority back, or restart.")
        except Exception as error:  # an exception here would end in gRPC's C core
            _LOG.warning("The certificate was not reloaded: %s", error)
            return None
        return _configuration(identity)

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        found: list[tuple[int, int, int] | None] = []
        for name in (CA, CERTIFICATE, KEY):
            try:
                status = (self._folder / name).stat()
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)


def _configuration(identity: TlsIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], identity.ca)


class PeerCheck(grpc.ServerInterceptor):
    """Refuses callers whose certificate is expired, revoked, or of a role or name that may not call here.

    Asked on every call and on every message of a stream, so that a connection which was open before a revocation ends
    with its next message.

    Args:
        folder: of the server's identity; its ``ca.pem`` and ``crl.pem`` decide.
        roles: organizational units that may call; None lets all in.
        names: common names that may call, or a predicate (called on every message); None lets all in.

    Status codes: UNAUTHENTICATED without a certificate, PERMISSION_DENIED for a refused one, UNAVAILABLE while the
    revocation list cannot be trusted.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        roles: Collection[str] | None = None,
        names: Collection[str] | Callable[[str], bool] | None = None,
    ) -> None:
        self._revoked = load_identity(folder, "server").revoked
        self._roles = None if roles is None else frozenset(roles)
        self._names: Callable[[str], bool] | None = (
            names if names is None or callable(names) else frozenset(names).__contains__
        )

    def check(self, peer: Peer) -> None:
        """Raises DeployError unless ``peer`` may call now."""
        peer.require_current()
        self._revoked.check(peer.serial, peer.name)
        if self._roles is not None and peer.role not in self._roles:
            raise DeployError(
                f"The certificate of {peer.name!r} is for {peer.role or 'no role'!r}, and only "
                f"{' or '.join(sorted(self._roles))} may call here: use the folder of that role."
            )
        if self._names is not None and not self._names(peer.name):
            raise DeployError(f"{peer.name!r} may not call here: ask the operator to allow this name.")

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method's handler; an unknown method stays unknown."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        many = handler.request_streaming
        return rewrapped(handler, lambda inner: self._single(inner, many), lambda inner: self._streaming(inner, many))

    def _single(self, inner: Callable[..., Any], many: bool) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self._admit(context)
            return inner(self._each(request, context) if many else request, context)

        return call

    def _streaming(self, inner: Callable[..., Any], many: bool) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._admit(context)
            yield from self._each(inner(self._each(request, context) if many else request, context), context)

        return call

    def _each(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for message in messages:
            self._admit(context)
            yield message

    def _admit(self, context: grpc.ServicerContext) -> None:
        try:
            peer = peer_of(context)
            if peer is not None:
                self.check(peer)
                return
        except RevocationError as error:
            _LOG.error("Nobody is let in: %s", error)  # the sentence names a path of this machine: not for callers
            context.abort(
                grpc.StatusCode.UNAVAILABLE,
                "This server cannot trust its revocation list and lets nobody in: its operator finds why in the log.",
            )
        except DeployError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "No certificate came with this call: connect with mutual TLS.")
