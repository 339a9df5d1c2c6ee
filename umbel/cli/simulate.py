"""``umbel simulate``: hundreds of virtual devices on this machine, thousands on a Ray cluster."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from umbel.cli.console import err, out

if TYPE_CHECKING:
    from simulations.ray_grid import RayGrid
    from simulations.scenario import Scenario
    from simulations.sizing import ActorPlan
    from umbel.cli.progress import RunProgress

app = typer.Typer(add_completion=False)

_LOOK = 0.3


@app.command()
def simulate(
    scenario: Annotated[
        str | None, typer.Argument(help="A scenario's name, or a TOML file; without one they are listed.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-c", "--config", metavar="KEY=VALUE", help="Change an option; a list makes a sweep; may be repeated."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would run and whether it fits.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="Join the Ray cluster whose head this is.")
    ] = None,
) -> None:
    """Run a scenario on virtual devices; with run.id of an unfinished run, resume it. Results: runs/<id>/."""
    from simulations.scenario import load_scenario, scenarios
    from simulations.simulate import check, named, settled_options, time_stamp
    from umbel.cli.options import parse_overrides

    if scenario is None:
        _list(list(scenarios()))
        return
    given = parse_overrides(options or [])
    runs = load_scenario(scenario, settled_options(given) | given)
    stamp = time_stamp()
    runs = [named(run, place, len(runs), stamp) for place, run in enumerate(runs)]
    for run in runs:  # a sweep is refused as a whole, before its first run
        check(run, address)
    layout = _fits(runs[0], address)
    if plan:
        _show_plan(runs, layout)
        return
    folders = [_one(run, address, f" ({place + 1} of {len(runs)})" if len(runs) > 1 else "")
               for place, run in enumerate(runs)]  # fmt: skip
    if len(folders) > 1:
        from simulations.compare import write_comparison

        page = write_comparison(folders, folders[0].parent / f"{scenario_stem(scenario)}-{stamp}.html")
        out.print(f"comparison: {page}", markup=False, soft_wrap=True)


def scenario_stem(scenario: str) -> str:
    """The name of a scenario that was given by name or by path."""
    return Path(scenario).stem


def _list(names: list[str]) -> None:
    from simulations.scenario import load_scenario

    table = Table(box=None, pad_edge=False)
    for column in ("scenario", "what it shows"):
        table.add_column(column)
    for name in names:
        table.add_row(name, load_scenario(name)[0].title)
    out.print(table)


def _fits(run: Scenario, address: str | None) -> ActorPlan:
    from simulations.cluster import local_node, ray_session
    from simulations.simulate import layout

    if address is None:
        return layout(run, [local_node()])
    with ray_session(address) as nodes:
        return layout(run, nodes)


def _show_plan(runs: list[Scenario], layout: ActorPlan) -> None:
    first = runs[0].config.federation
    table = Table(box=None, pad_edge=False, show_header=False)
    cohort = first.clients if first.cohort == "all" else first.cohort_size
    rows = [
        ("runs", f"{len(runs)}"),
        ("devices", f"{first.clients:,} of fleet {runs[0].fleet.name}, {cohort:,} a round, {first.rounds} rounds"),
        *layout.lines(),
    ]
    for name, text in rows:
        table.add_row(name, text)
    out.print(table)
    out.print("It fits.")


def _one(run: Scenario, address: str | None, which: str) -> Path:
    from simulations.simulate import simulate as start
    from umbel.cli.progress import RunProgress
    from umbel.cli.stoppable import stoppable

    config = run.config
    err.print(f"Simulating {run.name}{which} as run {config.run.id}", markup=False)
    metrics = _metrics(run)
    with (
        stoppable(metrics.parent, f"umbel simulate {run.name} -c run.id={config.run.id}"),
        RunProgress(metrics, config.federation.rounds) as progress,
    ):
        progress.say("starting the devices")
        with _watching(progress) as watch:
            folder = start(run, address=address, watch=watch)
        progress.update()
    _print(folder)
    return folder


def _metrics(run: Scenario) -> Path:
    from umbel.paths import runs_root

    section = run.config.run
    return runs_root(section.directory) / section.id / "metrics.jsonl"


class _Watch:
    """Shows in a thread of its own what the devices are doing; the coordinator's log goes to ``simulate.log``."""

    def __init__(self, progress: RunProgress) -> None:
        self._progress = progress
        self._grid: RayGrid | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._logger = logging.getLogger("flwr")
        self._handlers = self._logger.handlers

    def __call__(self, grid: RayGrid, folder: Path) -> None:
        self._grid = grid
        handler = logging.FileHandler(folder / "simulate.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logger.handlers = [handler]

    def start(self) -> None:
        self._logger.handlers = [logging.NullHandler()]
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        for handler in self._logger.handlers:
            handler.close()
        self._logger.handlers = self._handlers

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            self._progress.update()
            if self._grid is not None:
                state = self._grid.progress
                doing = "training" if state.kind == "train" else state.kind.removeprefix("query.").replace("_", " ")
                self._progress.detail(f"{doing} {state.done}/{state.total} devices" if state.total else "")


@contextmanager
def _watching(progress: RunProgress) -> Iterator[_Watch]:
    watch = _Watch(progress)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def _print(folder: Path) -> None:
    from coordinator.report.text import duration, size
    from coordinator.tracking import read_metrics
    from simulations.simulate import read_report
    from umbel.cli.tables import print_figures, rounds_table

    metrics = read_metrics(folder / "metrics.jsonl")
    out.print(rounds_table(metrics))
    print_figures(metrics)
    report = read_report(folder)
    virtual = report.get("virtual", {})
    if virtual:
        out.print(
            f"\nThis fleet ({report['fleet']}) would have taken {duration(virtual['seconds'])}, received "
            f"{size(virtual['bytes_down'])} and sent {size(virtual['bytes_up'])}; its simulation took "
            f"{duration(report['seconds'])} with {report['actors']} actors of {report['lanes']} lanes.",
            markup=False,
        )
    for name, meaning in (("report.html", "report"), ("adapter", "adapter, for PEFT"), ("simulation.json", "devices")):
        if (folder / name).exists():
            out.print(f"{meaning}: {folder / name}", markup=False, soft_wrap=True)
