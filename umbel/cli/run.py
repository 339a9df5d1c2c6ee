"""``umbel run``: one federated run under Flower's simulation runtime, watched, and ended cleanly whatever happens."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.console import err, out
from umbel.config import RunConfig
from umbel.errors import ConfigError, RunError

if TYPE_CHECKING:
    from umbel.cli.flower import FlowerSession
    from umbel.cli.progress import RunProgress

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is settled before anything starts.

    ``overrides`` are the flat options that Flower gets over those of the app's pyproject.toml.
    """

    app: Path
    root: Path
    config: RunConfig
    overrides: dict[str, Any]


@app.command()
def run(
    options: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", metavar="KEY=VALUE", help="Change an option, or a TOML file; may be repeated."),
    ] = None,
    federation_size: Annotated[
        int | None, typer.Option("--federation-size", min=1, help="Simulated clients; sets federation.clients.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="Share of a GPU that one training client occupies.")] = 0.0,
    app_folder: Annotated[
        Path | None, typer.Option("--app", help="Folder of the Flower app; the working directory, or this checkout.")
    ] = None,
) -> None:
    """Run federated fine-tuning under Flower's simulation; with run.id of an unfinished run, resume it.

    A resumed run takes the options that it was started with. All options: umbel config. Results: runs/<id>/.
    """
    execute(plan(options or [], federation_size, app_folder), gpus)


def plan(options: Sequence[str], federation_size: int | None, app_folder: Path | None, prefix: str = "") -> Plan:
    """Validates everything that can be before anything starts.

    Raises:
        ConfigError: an option is unknown, mistyped or cannot be combined; there is no Flower app.
        StrategyError: an unknown method.
    """
    from coordinator.supported import check_privacy, check_supported
    from umbel.cli.options import app_options, find_app, parse_overrides

    overrides = parse_overrides(options)
    if federation_size is not None:
        said = overrides.setdefault("federation.clients", federation_size)
        if said != federation_size:
            raise ConfigError(
                f"--federation-size {federation_size} contradicts federation.clients={said}: give only one of them."
            )
    app_path = find_app((app_folder or Path.cwd()).expanduser().absolute())
    given = app_options(app_path)
    root = Path(os.environ.get("UMBEL_ROOT") or Path.cwd()).absolute()
    flat = {**given, **_settled(root, {**given, **overrides}), **overrides}
    if flat.get("run.id", "auto") == "auto":
        flat["run.id"] = overrides["run.id"] = f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    config = RunConfig.from_flat(flat)
    check_supported(config)
    check_privacy(config)
    changed = {key: value for key, value in flat.items() if key in overrides or given.get(key, value) != value}
    return Plan(app_path, root, config, changed)


def _settled(root: Path, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that ``run.id`` names, where it can be resumed: nobody needs to repeat them."""
    from coordinator.run_folder import read_config, resumable

    name, directory = flat.get("run.id", "auto"), flat.get("run.directory", "runs")
    if name == "auto" or not isinstance(name, str) or not isinstance(directory, str):
        return {}
    folder = root / Path(directory).expanduser() / name
    if not resumable(folder):
        return {}
    saved = read_config(folder).to_flat()
    # The folder may have been moved since.
    return {key: value for key, value in saved.items() if key not in ("run.id", "run.directory")}


def execute(settled: Plan, gpus: float = 0.0) -> None:
    """Runs ``settled`` to its end and prints what came of it. A finished run is only printed.

    Raises:
        UmbelError: what the coordinator said in ``error.json``, as :class:`Failure`.
        RunError: the folder cannot be used, or the run ended without saying why.
        KeyboardInterrupt: Ctrl-C or SIGTERM; by then every process is gone.
    """
    from coordinator.run_folder import RunFolder
    from umbel.cli.stoppable import stoppable

    os.environ["UMBEL_ROOT"] = str(settled.root)
    with RunFolder.open(settled.config, settled.config.run.id) as folder:
        finished, resumed = folder.finished, folder.resumed
    if finished:
        err.print(f"Run {folder.id} is finished already; another run.id starts a new one.", markup=False)
        _print_results(folder.path)
        return
    err.print(f"{'Resuming' if resumed else 'Starting'} run {folder.id}", markup=False)
    with stoppable(folder.path, f"umbel run -c run.id={folder.id}"):
        _watch(settled, folder.path, gpus)
    _print_results(folder.path)


def _watch(settled: Plan, folder: Path, gpus: float) -> None:
    from umbel.cli.flower import FlowerSession
    from umbel.cli.progress import RunProgress

    config = settled.config
    with RunProgress(folder / "metrics.jsonl", config.federation.rounds) as progress:
        session = FlowerSession(settled.app, settled.root, config.run.id)
        try:
            with session:
                progress.say("loading the model")
                stream = session.submit(settled.overrides, config.federation.clients, config.train.threads, gpus)
                _follow(session, stream, folder, progress)
                progress.update()
        finally:
            # Every process is gone here; a second Ctrl-C may have cut the first clean-up short.
            session.close()
    _raise_failure(folder, session.log)


def _follow(session: FlowerSession, stream: subprocess.Popen[bytes], folder: Path, progress: RunProgress) -> None:
    """Waits until the run has ended, been refused, or died."""
    from coordinator.run_folder import read_error

    while read_error(folder) is None:
        progress.update()
        # The log stream ends with the run, but it may also be cut: then the ServerApp's own life decides.
        if stream.poll() is not None and (_ended(folder) or not session.simulating()):
            return
        time.sleep(0.2)


def _ended(folder: Path) -> bool:
    from coordinator.tracking import read_metrics

    path = folder / "metrics.jsonl"
    return path.is_file() and read_metrics(path).end is not None


def _raise_failure(folder: Path, log: Path) -> None:
    """Raises what ended the run, unless it finished."""
    from coordinator.run_folder import discard_unused, read_error

    failure = read_error(folder)
    ended = _ended(folder)
    if failure is None and ended:
        return
    discard_unused(folder)
    if failure is not None:
        raise Failure(*failure)
    words = _last_words(log)
    raise RunError(f"The run ended without a result{f' ({words})' if words else ''}: its log is {log}.")


class Failure(RunError):
    """The coordinator's own sentence and exit code, carried over from ``error.json``."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # of this one failure, not of the class


def _last_words(log: Path) -> str:
    """The last line of the log that names an error, without control characters, at most 200 characters."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        plain = "".join(letter for letter in line if letter.isprintable()).strip()
        if "Error" in plain or "Violation" in plain:
            return plain[:200]
    return ""


def _print_results(folder: Path) -> None:
    from coordinator.tracking import read_metrics
    from umbel.cli.tables import print_figures, rounds_table

    metrics = read_metrics(folder / "metrics.jsonl")
    out.print(rounds_table(metrics))
    print_figures(metrics)
    out.print()
    for name, meaning in (("report.html", "report"), ("adapter", "adapter, for PEFT"), ("metrics.jsonl", "metrics")):
        if (folder / name).exists():
            out.print(f"{meaning}: {folder / name}", markup=False, soft_wrap=True)
