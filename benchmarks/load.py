"""Load: 200 sites' worth of messages against one real coordinator on loopback; memory must not grow with the rounds.

SuperLink, SuperExec and ServerApp are the real ones, over HTTP; the sites are one process that speaks Flower's fleet
protocol for all of them, each over a connection of its own, and answers every order with a prepared update, so that
what is measured is the coordinator. Told are seconds and bytes of each round, and the resident memory of the SuperLink
and of the ServerApp after each; ``growth`` is megabytes a round by least squares over the second half of the rounds.

    python -m benchmarks.load --json
    python -m benchmarks.load --sites 50 --rounds 6
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tomli_w

from benchmarks.output import finish, parser

BIN = Path(sys.executable).parent
THREADS = 8
PATIENCE = 1800.0


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sites", type=int, default=200, help="how many sites answer")
    options.add_argument("--rounds", type=int, default=10, help="rounds of the run")
    arguments = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it started ends with it
    with tempfile.TemporaryDirectory(prefix="umbel-load-") as folder:
        figures = measure(Path(folder), arguments.sites, arguments.rounds)
    finish(figures, as_json=arguments.json)


def measure(root: Path, sites: int, rounds: int) -> dict[str, Any]:
    """One run; the figures of its rounds."""
    coordinator = Coordinator(root, sites, rounds)
    try:
        coordinator.start()
        with Sites(coordinator.address, sites, Layout.of(coordinator.options, root)) as load:
            coordinator.submit()
            memory = coordinator.watch(load)
        lines = coordinator.metrics().rounds
    finally:
        coordinator.stop()
    half = memory[len(memory) // 2 :]
    return {
        "sites": sites,
        "rounds": len(lines),
        "survivors": [line.survivors for line in lines],
        "seconds": [round(line.seconds["collect"], 2) for line in lines],
        "megabytes_up": round(lines[-1].bytes_up / 1e6, 2),
        "messages": load.answered,
        "superlink_mb": [round(at["superlink"], 1) for at in memory],
        "serverapp_mb": [round(at["serverapp"], 1) for at in memory],
        "growth_mb_a_round": {name: round(slope([at[name] for at in half]), 3) for name in ("superlink", "serverapp")},
    }


def slope(values: list[float]) -> float:
    """Least squares; 0 for fewer than two values."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


class Coordinator:
    """SuperLink and SuperExec on a free port, and the run's thin app."""

    def __init__(self, root: Path, sites: int, rounds: int) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.options = {
            "run.id": "load",
            "model.name": "base",
            "model.quantization": "none",
            "task.name": "folder",
            "task.data": "data",
            "task.minimum": 1,
            "lora.rank": 8,
            "federation.clients": sites,
            "federation.rounds": rounds,
            "federation.timeout": 600.0,
            "federation.wait": 600.0,
            "strategy.name": "ffa-lora",
            "privacy.unit": "none",
            "secagg.enabled": False,
            "evaluate.every": 0,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mark = secrets.token_hex(8)

    def start(self) -> None:
        """Base, data, SuperLink and SuperExec."""
        from mllm.testing import tiny_composed
        from tests.federated import make_folder

        tiny_composed().save(self.root / "base")
        make_folder(self.root / "data")
        self._launch("flower-superlink", "--insecure", "--host=127.0.0.1", f"--port={self.address.split(':')[1]}",
                     "--isolation=process", f"--database={self.root / 'superlink.db'}",
                     "--disable-runtime-dependency-installation")  # fmt: skip
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(OSError), direct.open(f"http://{self.address}/health", timeout=2):
                break
            time.sleep(0.2)
        self._launch("flower-superexec", "--insecure", f"--runtime-api-address={self.address}")

    def submit(self) -> None:
        """Starts the run."""
        from deploy.thin import write_thin

        write_thin(self.root / "app", self.options)
        home = self.root / "flower"
        home.mkdir(exist_ok=True)
        connection = {"superlink": {"load": {"address": self.address, "insecure": True}}}
        (home / "config.toml").write_text(tomli_w.dumps(connection))
        command = [str(BIN / "flwr"), "run", str(self.root / "app"), "load"]
        subprocess.run(command, env=self._environment(), check=True, capture_output=True)

    def metrics(self) -> Any:
        """Of the run, as far as it has come."""
        from coordinator.tracking import Metrics, read_metrics

        path = self.root / "runs" / "load" / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else Metrics()

    def watch(self, load: Sites) -> list[dict[str, float]]:
        """Megabytes of both processes after each round, until the run ends."""
        found: list[dict[str, float]] = []
        until = time.monotonic() + PATIENCE
        error = self.root / "runs" / "load" / "error.json"
        while (metrics := self.metrics()).end is None:
            if error.is_file() or load.failed or time.monotonic() > until:
                raise SystemExit(error.read_text() if error.is_file() else str(load.failed or "the run hangs"))
            if len(metrics.rounds) > len(found):
                found.append(
                    {name: self._megabytes(f"flower-{name}", f"flwr-{name}") for name in ("superlink", "serverapp")}
                )
            time.sleep(0.2)
        return found

    def stop(self) -> None:
        """Ends everything that came of it."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for process in self._own():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.root / "runs", ignore_errors=True)

    def _megabytes(self, *words: str) -> float:
        total = 0.0
        for process in self._own():
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline() for word in words):
                    total = max(total, process.memory_info().rss / 1e6)
        return total

    def _own(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("UMBEL_LOAD_MARK") == self._mark:
                    found.append(process)
        return found

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.root / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "UMBEL_ROOT": str(self.root),
            "UMBEL_LOAD_MARK": self._mark,
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def _launch(self, program: str, *arguments: str) -> None:
        with (self.root / f"{program}.log").open("ab") as log:
            command = [str(BIN / program), *arguments]
            self._processes.append(
                subprocess.Popen(
                    command, cwd=self.root, env=self._environment(), stdout=log, stderr=log, start_new_session=True
                )
            )


@dataclass(frozen=True)
class Layout:
    """What a site with the run's adapter would say of itself and send: spec and base hash, upload's hash and size."""

    hashes: tuple[str, str]
    upload: str
    size: int

    @classmethod
    def of(cls, options: dict[str, Any], root: Path) -> Layout:
        """Loads the base once."""
        from mllm.warm import warm_model
        from strategies.planner import plan
        from umbel.config import RunConfig

        config = RunConfig.from_flat(options | {"model.name": str(root / "base")})
        warm = warm_model(config)
        upload = plan(config).upload_spec(warm.tuned.spec, 1)
        return cls((warm.tuned.spec.hash, warm.base.hash), upload.hash, upload.size)


class Sites:
    """Many sites in one process: each with a connection and keys of its own, answering with a prepared update."""

    def __init__(self, address: str, count: int, layout: Layout) -> None:
        self.answered = 0
        self._layout = layout
        self.failed: BaseException | None = None
        self._address, self._count = address, count
        self._stack, self._ended = contextlib.ExitStack(), threading.Event()
        self._nodes: list[Any] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Sites:
        from flwr.supernode.fleet_http_connection import http_request_response

        os.environ["NO_PROXY"] = "127.0.0.1,localhost"
        with ThreadPoolExecutor(THREADS) as pool:
            opened = [http_request_response(self._address, insecure=True, max_retries=5) for _ in range(self._count)]
            self._nodes = list(pool.map(self._stack.enter_context, opened))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._stack.close()

    def _serve(self) -> None:
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                while not self._ended.is_set():
                    if not any(list(pool.map(self._turn, range(len(self._nodes))))):
                        time.sleep(0.3)
        except BaseException as error:
            self.failed = error

    def _turn(self, index: int) -> bool:
        """One poll of one site; whether there was anything to do."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree, no_object_id_recompute
        from flwr.supercore.inflatable.inflatable_utils import (
            inflate_object_from_contents,
            pull_objects,
            push_object_contents_from_iterable,
        )

        _, receive, send, _, _, pull, push, confirm = self._nodes[index]
        received = receive()
        if received is None:
            return False
        envelope, tree = received
        run = envelope.metadata.run_id
        wanted = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        contents = pull_objects(wanted, pull_object_fn=lambda name: pull(run, name))
        confirm(run, envelope.metadata.message_id)
        order = inflate_object_from_contents(envelope.metadata.message_id, contents)
        order.metadata.__dict__["_message_id"] = envelope.metadata.message_id
        reply = self._answer(index, order)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"], tree, parts = self._packed(index, reply)
            missing, session = send(reply, tree, 0.0)
        push_object_contents_from_iterable(
            ((name, parts[name]) for name in parts if name in missing),
            push_object_fn=lambda name, content: push(run, session, name, content),
        )
        self.answered += 1
        return True

    def _packed(self, index: int, reply: Any) -> tuple[str, Any, dict[str, bytes]]:
        """The reply as it is sent: its id, the tree of its objects, and their bytes."""
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

        parts = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        return reply.object_id, get_object_tree(reply), parts

    def _answer(self, index: int, order: Any) -> Any:
        """Describes itself, or sends an update as large as the adapter."""
        from flwr.app import Message

        from umbel import __version__, wire

        if order.metadata.message_type == wire.MessageType.DESCRIBE:
            said = wire.Description(f"site-{index:04d}", *self._layout.hashes, 8, __version__)
            return Message(wire.pack_description(said), reply_to=order)
        train = wire.unpack_train_order(order.content)
        generator = np.random.default_rng(index + 1000 * train.round)
        update = generator.normal(0, 1e-3, self._layout.size).astype(np.float32)
        metrics = {"examples": 8.0, "steps": 1.0, "loss": 1.0, "seen": 8.0}
        return Message(wire.pack_train_reply(wire.TrainReply(self._layout.upload, update, metrics)), reply_to=order)


if __name__ == "__main__":
    main()
