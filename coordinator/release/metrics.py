"""Figures of a release server for Prometheus: what was asked, how much was sent, what was refused and why.

Nobody's name is in them: who fetched what is not for a dashboard. A release's name labels bytes only once a file of
it is sent, so that callers cannot make series up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from coordinator.release import release_pb2 as pb
from umbel.rpc import rewrapped

METHODS = ("List", "Describe", "Fetch")
_OTHER = "other"
_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 300, 1800, float("inf"))


class ReleaseMetrics(grpc.ServerInterceptor):
    """Counts every call; to be the first of the server's interceptors, so that it sees what the others refuse.

    A caller whose certificate does not pass the TLS handshake makes no call and is not seen here.

    ::

        umbel_release_requests_total{method}         calls
        umbel_release_refusals_total{method,reason}  by gRPC status: unauthenticated and permission_denied (its
                                                     certificate), unavailable (no trusted revocation list), not_found,
                                                     invalid_argument, out_of_range, data_loss (a stored file was
                                                     altered), unknown (a fault of the server's)
        umbel_release_bytes_total{release}           bytes of files that were sent
        umbel_release_request_seconds{method}        until the last byte was handed over

    Args:
        registry: to which they are added; one server a registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._asked = Counter("umbel_release_requests", "Calls.", ["method"], registry=registry)
        self._refused = Counter(
            "umbel_release_refusals", "Calls refused, by gRPC status.", ["method", "reason"], registry=registry
        )
        self._bytes = Counter("umbel_release_bytes", "Bytes of files sent.", ["release"], registry=registry)
        self._seconds = Histogram(
            "umbel_release_request_seconds", "Time of a call.", ["method"], registry=registry, buckets=_SECONDS
        )
        for method in METHODS:
            self._asked.labels(method)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method's handler; an unknown method stays unknown, and streams of requests there are none."""
        handler: Any = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler  # type: ignore[no-any-return]
        name = handler_call_details.method.rpartition("/")[2]
        method = name if name in METHODS else _OTHER
        return rewrapped(
            handler, lambda inner: self._single(inner, method), lambda inner: self._streaming(inner, method)
        )

    def _single(self, inner: Callable[..., Any], method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _Measured(self, method, context):
                return inner(request, context)

        return call

    def _streaming(
        self, inner: Callable[..., Any], method: str
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Measured(self, method, context):
                for message in inner(request, context):
                    yield message
                    if isinstance(message, pb.Chunk):  # asked for the next one: this one is on its way
                        self._bytes.labels(request.name).inc(len(message.data))

        return call

    def begin(self, method: str) -> None:
        """Counts a call."""
        self._asked.labels(method).inc()

    def end(self, method: str, seconds: float, refused: str | None) -> None:
        """Counts its time and, where it was refused, the reason."""
        self._seconds.labels(method).observe(seconds)
        if refused is not None:
            self._refused.labels(method, refused).inc()


class _Measured:
    """One call, from its start to its end, however it ends."""

    def __init__(self, metrics: ReleaseMetrics, method: str, context: Any) -> None:
        self._metrics, self._method, self._context = metrics, method, context

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        self._metrics.begin(self._method)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        reason = None
        if kind is not None and not issubclass(kind, GeneratorExit):  # a caller that went away was not refused
            code = self._context.code()
            reason = (code or grpc.StatusCode.UNKNOWN).name.lower()
        self._metrics.end(self._method, time.perf_counter() - self._started, reason)
