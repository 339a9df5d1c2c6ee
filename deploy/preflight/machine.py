"""Checks of the machine: disk, memory, ports, and whether a base fits."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path

from umbel.errors import DeployError
from umbel.machine import memory_limit
from umbel.tls import split_address

GIB = 1 << 30
FRAMEWORKS = GIB
"""Bytes of a process that has imported torch, transformers and peft, generously (0.4 GB were measured)."""
_HEADROOM = 1.2
_TRAINING = 0.5


def check_folder(folder: Path, gib: float) -> str:
    """``folder`` (or where it would be made) takes a synced file and has ``gib`` GiB free.

    Raises:
        DeployError: it cannot be written, cannot be synced, or has too little room.
    """
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".umbel-preflight.") as stream:
            stream.write(b"umbel")
            stream.flush()
            os.fsync(stream.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise DeployError(
            f"{folder} cannot be written ({error.strerror}): choose a folder that the service's user owns."
        ) from None
    if free < gib * GIB:
        raise DeployError(
            f"{folder} has {free / GIB:.1f} GiB free of the {gib:g} needed: free some or choose another disk."
        )
    return f"{free / GIB:.1f} GiB free at {place}"


def check_memory(gib: float) -> str:
    """At least ``gib`` GiB are available.

    Raises:
        DeployError: they are not.
    """
    total, available = memory_limit()
    if available < gib * GIB:
        raise DeployError(
            f"{available / GIB:.1f} of {total / GIB:.1f} GiB memory are available and {gib:g} are needed: end other "
            "processes, raise the container's limit or use a larger machine."
        )
    return f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"


def needed_memory(stored: int) -> int:
    """Bytes that a process needs at its worst for a base of ``stored`` bytes: an estimate, not a bound.

    A base is read as it is stored and then quantized layer by layer, so the stored size is the peak of loading;
    activations, gradients and the adapter are taken as half of it more.
    """
    return int(stored * (_HEADROOM + _TRAINING)) + FRAMEWORKS


def check_model(base: Path) -> str:
    """The base in ``base`` fits into memory.

    Raises:
        DeployError: it does not, or there is none.
    """
    try:
        stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    except OSError as error:
        raise DeployError(f"{base} cannot be read ({error.strerror}): give the folder of a base.") from None
    if stored == 0:
        raise DeployError(f"{base} holds no safetensors files: give the folder of a base, or build it first.")
    return check_stored(f"The base in {base}", stored)


def check_stored(which: str, stored: int) -> str:
    """A base whose files have ``stored`` bytes fits into memory; they need not be on this machine.

    Raises:
        DeployError: it does not.
    """
    need, (total, available) = needed_memory(stored), memory_limit()
    if need > available:
        raise DeployError(
            f"{which} needs about {need / GIB:.1f} GiB to be loaded and trained on, and "
            f"{available / GIB:.1f} of {total / GIB:.1f} are available: use a smaller base or a larger machine."
        )
    return f"about {need / GIB:.1f} of {available / GIB:.1f} GiB"


def check_training(name: str, traced: int, checkpointed: int | None = None) -> str:
    """A training step of the system ``name`` fits into memory; nothing of the system need be on this machine.

    Args:
        name: as ``model.name``.
        traced: bytes of a step, Python and its libraries aside.
        checkpointed: the same with gradient checkpointing, where that is less.

    Raises:
        DeployError: it does not.
    """
    need, (total, available) = traced + FRAMEWORKS, memory_limit()
    if need > available:
        less = "use"
        if checkpointed is not None and checkpointed < traced:
            less = f"set model.gradient-checkpointing ({checkpointed / GIB:.1f} GiB), use"
        raise DeployError(
            f"A training step of {name} takes {traced / GIB:.1f} GiB and Python about {FRAMEWORKS / GIB:.1f}, and "
            f"{available / GIB:.1f} of {total / GIB:.1f} are available: {less} a smaller system (umbel zoo) or a "
            "larger machine."
        )
    return f"{traced / GIB:.1f} GiB a training step, about {FRAMEWORKS / GIB:.1f} for Python, of {available / GIB:.1f}"


def check_port(address: str) -> str:
    """``host:port`` can be listened on.

    Raises:
        DeployError: it is taken, forbidden or not this machine's.
    """
    host, port = split_address(address)
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return f"{address} is free"
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "stop what listens there or choose another port",
            errno.EACCES: "choose a port above 1023 or allow the service to use this one",
            errno.EADDRNOTAVAIL: "give an address of this machine",
        }.get(error.errno or 0, "give an address of this machine and a free port")
        raise DeployError(f"{address} cannot be listened on ({error.strerror}): {advice}.") from None
