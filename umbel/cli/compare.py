"""``umbel compare RUN RUN...``: one page with the curves and the figures of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import out

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Ids of the runs, or their folders; at least two.")],
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("comparison.html"),
) -> None:
    """Write one page that compares runs, print its table and say where it is."""
    from coordinator.run_folder import find_run
    from simulations.compare import comparison_table, write_comparison

    folders = [find_run(run, directory) for run in runs]
    path = write_comparison(folders, output.expanduser().absolute())
    out.print(comparison_table(folders))
    out.print(str(path), markup=False, soft_wrap=True)
