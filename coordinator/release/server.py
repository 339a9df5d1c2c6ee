"""The release server: lists, describes and streams what the registry holds, to members of the federation only."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator.release import release_pb2 as pb
from coordinator.release import release_pb2_grpc as rpc
from coordinator.release.blobs import Blobs
from coordinator.release.manifest import Manifest, parse_manifest
from coordinator.release.metrics import ReleaseMetrics
from coordinator.release.registry import Registry, Release
from coordinator.release.rules import MAX_VERSION, check_release_name
from umbel.errors import DeployError
from umbel.tls import PeerCheck, server_credentials, split_address

CHUNK_BYTES = 256 << 10
MAX_REQUEST_BYTES = 16 << 10
LISTED = 1000
ROLES = ("client", "operator")
"""Whose certificates may fetch: a site's client and a coordinator's operator."""
SERVICE = "umbel.release.v1.Releases"
_THREADS = 16


class Servicer(rpc.ReleasesServicer):
    """Answers from the registry. Names in a request are looked up, never turned into paths."""

    def __init__(self, registry: Registry, blobs: Blobs) -> None:
        self._registry, self._blobs = registry, blobs

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> pb.ListReply:  # noqa: N802
        """Every release, newest first; at most 1000."""
        with _refused(context):
            name = check_release_name(request.name) if request.name else ""
            rows = self._registry.releases(name, LISTED)
        return pb.ListReply(
            entries=[
                pb.Entry(
                    name=release.name,
                    version=release.version,
                    run=release.run,
                    created=release.created,
                    bytes=release.size,
                    current=current,
                )
                for release, current in rows
            ]
        )

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.Description:  # noqa: N802
        """Manifest and head, with their signatures."""
        with _refused(context):
            head = self._registry.head(check_release_name(request.name))
            # One answer, one state: the current version is the one that this head names.
            version = request.version or (head.version if head is not None else 0)
            release = self._find(request.name, version)
        if release is None or head is None:
            context.abort(grpc.StatusCode.NOT_FOUND, _unknown(request.name, request.version))
        return pb.Description(
            manifest=release.manifest,
            manifest_signature=release.signature,
            head=head.head,
            head_signature=head.signature,
        )

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:  # noqa: N802
        """One file from an offset on."""
        with _refused(context):
            release = self._find(check_release_name(request.name), request.version)
        if release is None:
            context.abort(grpc.StatusCode.NOT_FOUND, _unknown(request.name, request.version))
        with _refused(context):
            file = _parsed(release).file(request.file)
        if request.offset > file.size:
            context.abort(
                grpc.StatusCode.OUT_OF_RANGE,
                f"{file.name} has {file.size} bytes and cannot be read from {request.offset} on: fetch it from 0.",
            )
        offset = request.offset
        with _refused(context, grpc.StatusCode.DATA_LOSS):
            for data in self._blobs.read(file.sha256, offset, CHUNK_BYTES):
                yield pb.Chunk(offset=offset, data=data)
                offset += len(data)

    def _find(self, name: str, version: int) -> Release | None:
        return self._registry.find(name, version) if 0 < version <= MAX_VERSION else None


class _refused:  # noqa: N801  # reads as a clause
    """Turns our sentence into a status."""

    def __init__(self, context: grpc.ServicerContext, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        self._context, self._code = context, code

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DeployError):
            self._context.abort(self._code, str(error))


def _parsed(release: Release) -> Manifest:
    return parse_manifest(release.manifest)


def _unknown(name: str, version: int) -> str:
    what = f"{name[:80]!r} has no version {version}" if version else f"Nothing was released under {name[:80]!r}"
    return f"{what}: 'umbel release list' shows what there is."


def make_server(
    address: str,
    tls: Path,
    registry: Registry,
    blobs: Blobs,
    *,
    roles: Collection[str] = ROLES,
    names: Collection[str] | None = None,
    metrics: ReleaseMetrics | None = None,
) -> tuple[grpc.Server, int]:
    """A server that is not started yet, and its port.

    Args:
        address: ``host:port``; port 0 lets the system choose.
        tls: folder of the server's certificate.
        registry: of releases.
        blobs: their files.
        roles: whose certificates may call.
        names: members that may call; None lets every member in.
        metrics: count what is asked, sent and refused.

    Raises:
        DeployError: the certificate cannot be used, or the address is taken.
    """
    if not address.endswith(":0"):
        split_address(address)
    credentials = server_credentials(tls)
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="release"),
        interceptors=[*([metrics] if metrics is not None else []), PeerCheck(tls, roles=roles, names=names)],
        maximum_concurrent_rpcs=4 * _THREADS,
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.so_reuseport", 0),
        ],
    )
    rpc.add_ReleasesServicer_to_server(Servicer(registry, blobs), server)
    checks = health.HealthServicer()
    checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise DeployError(
            f"{address} cannot be listened on: another process has the port, or it is not this machine's."
        )
    return server, port
