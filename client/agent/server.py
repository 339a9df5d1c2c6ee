"""serve: the listeners of one agent: a socket for each coordinator, one port with certificates, the site's own desk."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.agent.agent import Agent
from client.agent.agent_pb2 import DESCRIPTOR
from client.agent.agent_pb2_grpc import add_SiteAgentServicer_to_server, add_SiteDeskServicer_to_server
from client.agent.frames import MESSAGE
from client.agent.house import House, clear_socket
from client.agent.service import AgentService, CourierCheck, DeskService
from client.site import Site
from umbel.errors import SiteError
from umbel.tls import server_credentials

_CALLS = 8
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.so_reuseport", 0),
    # A courier that vanished without a word is noticed within a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_SERVICE = DESCRIPTOR.services_by_name["SiteAgent"].full_name


class AgentServer:
    """A running agent; a context manager. No reflection; the health service says SERVING while it listens.

    Args:
        house: of the site.
        wrap: see Agent.

    Raises:
        SiteError: nothing to listen on, an address that is taken, or log, ledger or keys that cannot be trusted.
        DeployError: the certificates cannot be used.
    """

    def __init__(self, house: House, *, wrap: Callable[[Site], Site] | None = None) -> None:
        policy = house.policy
        prepare_machine(house)
        self._lock = _hold(house)
        self.agent = Agent(house, wrap=wrap)
        self.addresses: list[str] = []
        self._servers: list[grpc.Server] = []
        self._health = health.HealthServicer()
        for coordinator in policy.coordinators:
            if coordinator.socket:
                path = house.place(coordinator.socket)
                self._couriers(self._listen(path), coordinator.name)
        if policy.listen.address:
            self._secure(house)
        couriers = tuple(self.addresses)
        add_SiteDeskServicer_to_server(DeskService(self.agent, couriers), self._listen(house.desk))

    def start(self) -> None:
        """Begins to answer."""
        for server in self._servers:
            server.start()
        for address in self.addresses:
            _private(address)
        self._health.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace: float = 10.0) -> None:
        """Takes no new calls, lets running ones end within ``grace`` seconds, and notes the end."""
        self._health.enter_graceful_shutdown()
        for stopped in [server.stop(grace) for server in self._servers]:
            stopped.wait(grace + 5)
        idle = self.agent.idle(grace)
        self.agent.close()
        if idle:  # else the folder stays this process's until the work in hand, which is paid for, is done
            os.close(self._lock)

    def __enter__(self) -> AgentServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _couriers(self, server: grpc.Server, coordinator: str | None) -> None:
        add_SiteAgentServicer_to_server(AgentService(self.agent, coordinator), server)

    def _listen(self, path: Path) -> grpc.Server:
        clear_socket(path)
        server = _server()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        address = f"unix:{path}"
        before = os.umask(0o077)  # from its first moment nobody else may open the socket
        try:
            _bind(lambda: server.add_insecure_port(address), address)
        finally:
            os.umask(before)
        self.addresses.append(address)
        self._servers.append(server)
        return server

    def _secure(self, house: House) -> None:
        listen = house.policy.listen
        folder = house.place(listen.tls)
        server = _server(CourierCheck(self.agent, folder))
        self._couriers(server, None)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        credentials = server_credentials(folder)
        port = _bind(lambda: server.add_secure_port(listen.address, credentials), listen.address)
        self.addresses.append(f"{listen.address.rpartition(':')[0]}:{port}")
        self._servers.append(server)


def prepare_machine(house: House) -> None:
    """Keeps the process off the GPU, or within its share of it; must come before anything is loaded."""
    limits = house.policy.limits
    if not limits.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(limits.gpu_memory)


def _server(*interceptors: grpc.ServerInterceptor) -> grpc.Server:
    return grpc.server(
        ThreadPoolExecutor(_CALLS, thread_name_prefix="agent"),
        interceptors=list(interceptors),
        options=_OPTIONS,
        maximum_concurrent_rpcs=_CALLS,
    )


def _bind(bind: Callable[[], int], address: str) -> int:
    try:
        port = bind()
    except RuntimeError:
        port = 0
    if not port:
        raise SiteError(f"The agent cannot listen on {address}: is another one running, or the address wrong?")
    return port


def _private(address: str) -> None:
    """Only the owner may open a Unix socket, and the group of its folder where the folder lets that group in alone.

    A socket in a setgid folder has the folder's group from the start; elsewhere the agent must be in that group.
    """
    if not address.startswith("unix:"):
        return
    path = Path(address.removeprefix("unix:"))
    folder = path.parent.stat()
    if stat.S_IMODE(folder.st_mode) & 0o011 != 0o010:
        path.chmod(0o600)
        return
    if path.stat().st_gid != folder.st_gid:
        try:
            os.chown(path, -1, folder.st_gid)
        except OSError as error:
            raise SiteError(
                f"The socket {path} cannot be given to its folder's group ({error.strerror}): put this agent's user "
                "into that group, make the folder setgid (chmod g+s), or close it to the group (chmod 0700)."
            ) from None
    path.chmod(0o660)


def _hold(house: House) -> int:
    """One agent a site: two would lose each other's budget and secrets."""
    import fcntl

    house.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(house.state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise SiteError(f"Another agent already serves {house.folder}: stop it first.") from None
    return descriptor
