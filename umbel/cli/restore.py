"""``umbel restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import out

app = typer.Typer(add_completion=False)


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="File that umbel backup wrote.")],
    folder: Annotated[Path, typer.Argument(help="Folder to restore into; stop the services that use it.")],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="What was spent since the backup is lost, and you made up for it.")
    ] = False,
) -> None:
    """Put a backup back. No ledger shows less afterwards than before; two books are merged."""
    from deploy.backup import restore as put_back

    for done in put_back(folder, archive, accept_loss=accept_loss):
        out.print(f"{done.kind:<9} {done.action:<9} {done.name}: {done.said}", markup=False, soft_wrap=True)
