"""Ray for a simulation: a local one that ends with the run, or an existing cluster that is joined."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from umbel.errors import FederationError

_MB = 1 << 20
_PASSED_ON = ("UMBEL_", "HF_", "TOKENIZERS_", "OMP_")


@dataclass(frozen=True, slots=True)
class RayNode:
    """A machine of the cluster: CPUs, GPUs and bytes of memory that Ray may use there."""

    cpus: float
    gpus: float
    memory: int


@contextlib.contextmanager
def ray_session(
    address: str | None = None, *, cpus: int | None = None, gpus: int | None = None, store_mb: int = 512
) -> Iterator[list[RayNode]]:
    """Ray, connected; gives its machines. A local Ray is shut down at the end, a cluster is left.

    If this process is connected to a Ray already, that one is used and left as it is.

    Args:
        address: ``host:port`` of a running cluster's head; None starts Ray in this machine.
        cpus: of the local Ray; all by default.
        gpus: of the local Ray; all by default.
        store_mb: size of the local object store.

    Raises:
        FederationError: nothing answers at the address, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        yield ray_nodes()
        return
    if address is not None:
        check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "num_cpus": cpus, "num_gpus": gpus, "object_store_memory": store_mb * _MB}
    else:
        passed = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        options = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
        options["runtime_env"] = {"env_vars": passed}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises whatever its parts raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = f"The Ray cluster at {address} cannot be joined" if address else "Ray does not start"
        raise FederationError(f"{what} ({first[:200].rstrip('.')}): start it again or mend the address.") from None
    try:
        yield ray_nodes()
    finally:
        ray.shutdown()


def ray_nodes() -> list[RayNode]:
    """The living machines of the cluster that this process is connected to."""
    import ray

    return [
        RayNode(
            float(node["Resources"].get("CPU", 0.0)),
            float(node["Resources"].get("GPU", 0.0)),
            int(node["Resources"].get("memory", 0.0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def local_node() -> RayNode:
    """This machine, as a local Ray would see it, without starting one."""
    gpus = 0
    with contextlib.suppress(ImportError):
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return RayNode(float(allowed), float(gpus), int(psutil.virtual_memory().available))


def check_address(address: str) -> None:
    """Raises FederationError unless something listens at ``host:port``."""
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    hint = f"No Ray cluster answers at {address!r}: start one with 'ray start --head' and give its host:port."
    if address.startswith("ray://") or not (sign and host and port.isdecimal() and int(port) < 1 << 16):
        raise FederationError(
            f"{address!r} is no address of a Ray cluster: give host:port of its head, without ray://."
        )
    try:
        with socket.create_connection((host, int(port)), timeout=5.0):
            pass
    except OSError:
        raise FederationError(hint) from None
