"""Real runs: ``umbel run`` in a process of its own, which starts a SuperLink and does ``flwr run .``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from safetensors.numpy import load_file

from coordinator.tracking import Metrics, read_metrics
from tests.e2e.checkout import ROOT
from umbel.cli.processes import family

# The command of this checkout, whichever is installed; what it starts takes its code from the bundle.
_UMBEL = [sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; from umbel.cli.main import run; run()"]
PATIENCE = 300.0
"""Seconds after which a run counts as hanging; half a minute is usual."""


@dataclass(frozen=True)
class World:
    """A place of its own for runs: working directory, ``UMBEL_HOME`` and so every file that umbel or Flower keeps.

    ``mark`` is in the environment of every process that comes of it.
    """

    app: Path
    root: Path
    mark: str

    @property
    def home(self) -> Path:
        return self.root / "home"

    def environment(self) -> dict[str, str]:
        taken = {key: value for key, value in os.environ.items() if key not in ("FLWR_HOME", "PYTHONPATH")}
        return taken | {
            "UMBEL_HOME": str(self.home),
            "UMBEL_ROOT": str(self.root),
            "UMBEL_TEST_MARK": self.mark,
            "HF_HUB_OFFLINE": "1",
        }

    def start(self, flat: Mapping[str, Any]) -> subprocess.Popen[str]:
        """``umbel run`` with these options, over those of the app's pyproject.toml."""
        path = self.root / f"{flat.get('run.id', 'run')}.toml"
        path.write_text(tomli_w.dumps(dict(flat)))
        command = [*_UMBEL, "run", "--app", str(self.app), "-c", str(path)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env=self.environment(), stdout=pipe, stderr=pipe, text=True)

    def run(self, flat: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        """Starts and waits; a run that hangs is killed and fails the test."""
        process = self.start(flat)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            kill_everything(self)
            raise AssertionError(f"the run hangs; the log says: {self.log_tail()}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def log_tail(self) -> str:
        """The last lines of the newest log, for the message of a failing test."""
        logs = sorted((self.home / "flower" / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text(errors="replace")[-3000:] if logs else "(no log)"

    def folder(self, name: str) -> Path:
        return self.root / "runs" / name

    def metrics(self, name: str) -> Metrics:
        path = self.folder(name) / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else Metrics()

    def probed(self) -> list[dict[str, Any]]:
        """What the probe client noted: one entry a message."""
        path = self.root / "probe.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def processes(self) -> list[psutil.Process]:
        """Every living process that came of this world. (Some of Ray's clear their environment: by session.)"""
        tokens = [json.loads(note.read_text())["token"] for note in self.home.glob("flower/sessions/*/session.json")]
        found = {process.pid: process for token in tokens for process in family(token)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("UMBEL_TEST_MARK") == self.mark and process.pid != os.getpid():
                    found[process.pid] = process
        return list(found.values())


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to all of them at once, as a power cut would."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)


def kill_everything(world: World) -> None:
    """SIGKILL to whatever came of the world, until nothing is left."""
    for _ in range(5):  # what was being started in between
        processes = world.processes()
        if not processes:
            return
        kill(processes)
        psutil.wait_procs(processes, timeout=10)


@contextlib.contextmanager
def nothing_left(world: World) -> Iterator[None]:
    """Whatever a run started must be gone after it."""
    try:
        yield
        deadline = time.monotonic() + 10
        while (left := world.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [process.name() for process in left] == []
    finally:
        kill_everything(world)


def adapter(folder: Path) -> dict[str, Any]:
    """The factors that a run left, by name."""
    return load_file(folder / "adapter" / "adapter_model.safetensors")
