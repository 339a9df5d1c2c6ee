"""``umbel export RUN DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import out

app = typer.Typer(add_completion=False)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Id of the run, or its folder.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must be absent or empty.")],
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
) -> None:
    """Copy a run's adapter, with its model card, to a folder that PEFT loads."""
    from coordinator.export import export_adapter
    from coordinator.run_folder import find_run

    out.print(str(export_adapter(find_run(run, directory), target)), markup=False, soft_wrap=True)
