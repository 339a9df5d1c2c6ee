"""``umbel runs``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from umbel.cli.console import out
from umbel.errors import UmbelError

app = typer.Typer(add_completion=False)


@app.command()
def runs(directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs") -> None:
    """List the runs, oldest first."""
    from coordinator.run_folder import list_runs, runs_root

    folders = list_runs(directory)
    if not folders:
        out.print(f"No runs in {runs_root(directory)}.", markup=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for name, justify in (("run", "left"), ("started", "left"), ("state", "left"), ("rounds", "right"),
                          ("base", "right"), ("accuracy", "right"), ("ε", "right")):  # fmt: skip
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=name != "state")
    for folder in folders:
        table.add_row(*_row(folder))
    out.print(table)


def _row(folder: Path) -> list[str]:
    """One line a run; a damaged run says so instead of hiding the others."""
    from coordinator.report.summary import summarize
    from coordinator.report.text import number, percent
    from coordinator.run_folder import METRICS, read_config, read_error
    from coordinator.tracking import Metrics, read_metrics

    try:
        config = read_config(folder)
        metrics = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else Metrics()
    except UmbelError:
        return [folder.name, "", "damaged", "", "", "", ""]
    summary = summarize(metrics)
    started = metrics.start.time if metrics.start else 0.0
    state = "finished" if metrics.end else "failed" if read_error(folder) else "unfinished"
    return [
        folder.name,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "",
        state,
        f"{summary.rounds}/{config.federation.rounds}",
        percent(summary.base),
        percent(summary.federated),
        number(summary.privacy.epsilon) if summary.privacy else "",
    ]
