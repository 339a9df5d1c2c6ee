"""``umbel report RUN``."""

from __future__ import annotations

from typing import Annotated

import typer

from umbel.cli.console import out

app = typer.Typer(add_completion=False)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Id of the run, or its folder.")],
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
) -> None:
    """Write a run's report.html again, print its figures and say where it is."""
    from coordinator.report import write_report
    from coordinator.run_folder import METRICS, find_run
    from coordinator.tracking import read_metrics
    from umbel.cli.tables import print_figures, rounds_table

    folder = find_run(run, directory)
    path = write_report(folder)
    metrics = read_metrics(folder / METRICS)
    out.print(rounds_table(metrics))
    print_figures(metrics)
    out.print(str(path), markup=False, soft_wrap=True)
