"""``umbel evaluate RUN``."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.table import Table

from umbel.cli.console import err, out

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Id of the run, or its folder.")],
    limit: Annotated[int, typer.Option(min=0, help="Most examples of each set; 0 takes all.")] = 0,
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
) -> None:
    """Measure a run's adapter on the task's evaluation sets, with the base that the run names."""
    from coordinator.report.text import number, percent
    from coordinator.run_folder import find_run

    folder = find_run(run, directory)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from coordinator.remeasure import remeasure

    with err.status("starting") as status:
        found = remeasure(folder, limit, status.update)
    table = Table(box=None, pad_edge=False)
    table.add_column("set")
    for name in ("examples", "accuracy", "loss"):
        table.add_column(name, justify="right")
    for name, figures in found.items():
        table.add_row(name, number(figures.count), percent(figures.accuracy), number(figures.loss))
        for question, (correct, count) in figures.by_type.items():
            table.add_row(f"  {question}", number(count), percent(correct / count if count else None), "")
    out.print(table)
