"""Finding and ending exactly the processes that one session started, by their ids.

Flower starts its SuperExec in a session of its own, and Ray's agents clear their environment: neither a process
group nor parenthood finds them all. So every process of a session carries a token in its environment, and whatever
shares an operating-system session with one that does belongs to it too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil

TOKEN = "UMBEL_SESSION"  # noqa: S105 - the name of an environment variable, no secret


def family(token: str) -> list[psutil.Process]:
    """All living processes of the session ``token``, never this one. Empty for an unknown token."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                found[process.pid] = process
        except (psutil.Error, OSError):  # another user's, or gone
            continue
    sessions = {identifier for pid in found if (identifier := _session(pid)) is not None} - {_session(0)}
    for process in psutil.process_iter():
        if process.pid not in found and process.pid != os.getpid() and _session(process.pid) in sessions:
            found[process.pid] = process
    return list(found.values())


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def stop_family(token: str, grace: float = 5.0) -> None:
    """Asks every process of the session to end, and kills those that have not after ``grace`` seconds."""
    stop(family(token), grace)
    stop(family(token), 0.0)  # what was being started in between


def stop(processes: Sequence[psutil.Process], grace: float) -> None:
    """SIGTERM, then SIGKILL after ``grace`` seconds. psutil never signals a reused id."""
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(list(processes), timeout=grace)
    for process in alive:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(alive, timeout=5.0)
