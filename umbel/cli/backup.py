"""``umbel backup``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import out

app = typer.Typer(add_completion=False)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Folder of a site, or of a coordinator's runs and registry.")],
    archive: Annotated[Path, typer.Argument(help="File to write; it must not exist.")],
) -> None:
    """Copy every ledger, log and registry under FOLDER to one archive, without stopping anything. Keys stay out."""
    from deploy.backup import back_up

    for name, kind in back_up(folder, archive).items():
        out.print(f"{kind:<9} {name}", markup=False, soft_wrap=True)
    out.print(f"written   {archive}", markup=False, soft_wrap=True)
