"""FlowerSession: Flower's simulation runtime for one run, private to it and gone after it.

``flwr run .`` alone leaves a SuperLink running that later runs share, with the environment of the first. A session
starts its own on a free port, with a home of its own under ``UMBEL_HOME/flower``, so that runs do not disturb each
other, and ends every process that came of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import tomli_w

from umbel.cli.processes import TOKEN, family, stop_family
from umbel.errors import FederationError, RunError
from umbel.files import write_atomic
from umbel.paths import home

_STARTUP = 60.0
"""Seconds that a SuperLink may take on a busy machine; 1.5 is usual."""

_QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def flower_home() -> Path:
    """Where sessions live while they run, and the logs of the last ones."""
    return home() / "flower"


class FlowerSession:
    """A running SuperLink of our own; a context manager.

    Args:
        app: folder with the Flower app's pyproject.toml.
        root: working directory of the run; relative paths of the configuration count from it.
        name: names the log, ``UMBEL_HOME/flower/logs/<name>.log``.
    """

    def __init__(self, app: Path, root: Path, name: str) -> None:
        self.app = app
        self.root = root
        self.token = secrets.token_hex(8)
        self.folder = flower_home() / "sessions" / self.token
        self.log = flower_home() / "logs" / f"{name}.log"
        self._started = False

    def __enter__(self) -> FlowerSession:
        sweep()
        owner = psutil.Process()
        note = {"pid": owner.pid, "created": owner.create_time(), "token": self.token}
        write_atomic(self.folder / "session.json", json.dumps(note).encode())
        write_atomic(self.log, b"")
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process of the session and removes its home; the log stays. May be called twice."""
        stop_family(self.token)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        binaries = str(Path(sys.executable).parent)
        return {
            "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
            "HF_HUB_OFFLINE": "1",  # a run never downloads unasked; set HF_HUB_OFFLINE=0 to allow a hub id
            **os.environ,
            **_QUIET,
            "PATH": binaries + os.pathsep + os.environ.get("PATH", ""),
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost"])),
            "FLWR_HOME": str(self.folder),
            "UMBEL_ROOT": str(self.root),
            TOKEN: self.token,
        }

    def _launch(self, command: list[str], cwd: Path) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).parent / command[0]
        with self.log.open("ab") as log:
            try:
                # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
                return subprocess.Popen(
                    [str(program), *command[1:]],
                    cwd=cwd,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise FederationError(
                    f"{program} cannot be started ({error.strerror}): install umbel with its dependencies."
                ) from None

    def _start(self) -> None:
        for _ in range(3):  # a port that was free may be taken in between
            port = _free_port()
            connection = {"default": "umbel", "umbel": {"address": f"127.0.0.1:{port}", "insecure": True}}
            write_atomic(self.folder / "config.toml", tomli_w.dumps({"superlink": connection}).encode())
            command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
            superlink = self._launch([*command, "--disable-runtime-dependency-installation"], self.root)
            if _answers(superlink, port):
                return
            stop_family(self.token)
        raise FederationError(f"Flower's SuperLink does not start: its log is {self.log}.")

    def submit(self, overrides: Mapping[str, Any], nodes: int, cpus: int, gpus: float) -> subprocess.Popen[bytes]:
        """Starts ``flwr run . --stream`` with ``nodes`` simulated clients; ends when the run does.

        Args:
            overrides: flat options that differ from pyproject.toml's.
            nodes: simulated SuperNodes.
            cpus: CPUs that one training client occupies; its number of actors follows from it.
            gpus: share of a GPU that one training client occupies; 0 is none.
        """
        path = self.folder / "overrides.toml"
        write_atomic(path, tomli_w.dumps(dict(overrides)).encode())
        size = f"num-supernodes={nodes} client-resources-num-cpus={cpus}"
        if gpus:
            size += f" client-resources-num-gpus={float(gpus)}"
        return self._launch(
            ["flwr", "run", ".", "umbel", "--stream", "-c", str(path), "--federation-config", size], self.app
        )

    def simulating(self) -> bool:
        """Whether the process that runs the ServerApp is alive."""
        for process in family(self.token):
            with contextlib.suppress(psutil.Error):
                if any("flwr-simulation" in part for part in process.cmdline()):
                    return True
        return False


def sweep() -> None:
    """Ends sessions whose owner was killed before it could end them itself."""
    for note in (flower_home() / "sessions").glob("*/session.json"):
        try:
            body = json.loads(note.read_text(encoding="utf-8"))
            pid, created, token = int(body["pid"]), float(body["created"]), str(body["token"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        try:
            alive = psutil.Process(pid).create_time() == created
        except psutil.Error:
            alive = False
        if not alive:
            stop_family(token)
            shutil.rmtree(note.parent, ignore_errors=True)


def _free_port() -> int:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise RunError(f"No port can be opened on 127.0.0.1 ({error.strerror}): allow loopback connections.") from None


def _answers(superlink: subprocess.Popen[bytes], port: int) -> bool:
    """Waits for the SuperLink's health endpoint; False when the process ends or the time is up."""
    deadline = time.monotonic() + _STARTUP
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and superlink.poll() is None:
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False
