"""``umbel site review``: what a run would do here and cost, before a person approves it."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import out
from umbel.errors import SiteError


def review(
    run: Annotated[Path, typer.Argument(help="Options of the run: RUN.toml, or the app's pyproject.toml.")],
    folder: Annotated[
        Path, typer.Option("--site", envvar="UMBEL_SITE", help="The site's folder, with site.toml.")
    ] = Path(),
    coordinator: Annotated[str, typer.Option(help="Whose run it is; may be left out where one is known.")] = "",
    bundle: Annotated[Path | None, typer.Option(help="The bundle (.fab or folder), where it carries code.")] = None,
    change: Annotated[list[str] | None, typer.Option("-c", help="key=value over the file, as for umbel run.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Sign an approval.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
    person: Annotated[str, typer.Option(help="Who approves; default: your login.")] = "",
    days: Annotated[float, typer.Option(help="For how long.")] = 90.0,
) -> None:
    """Shows what a run would do at this site and cost it; with --approve signs that it may."""
    from rich.table import Table

    from client.agent.house import House
    from client.agent.review import approve_run, make_definition, review_run, withdraw_run

    house = House.open(folder)
    definition = make_definition(house, run, coordinator=coordinator, bundle=bundle, changes=change or [])
    who = person or getpass.getuser()
    if withdraw:
        withdraw_run(house, definition, who)
        out.print(f"Withdrawn: {definition.hash}")
        return
    found = review_run(house, definition)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for key, value in found.facts:
        table.add_row(key, value)
    out.print(table)
    for sentence in found.objections:
        out.print(f"Refused: {sentence}", markup=False, soft_wrap=True)
    for sentence in found.warnings:
        out.print(f"Warning: {sentence}", markup=False, soft_wrap=True)
    if not approve:
        out.print("Nothing was signed; --approve signs." if not found.objections else "It cannot be approved so.")
        return
    if found.objections:
        raise SiteError("The run breaks the site's policy and was not approved: change the run or site.toml.")
    approval = approve_run(house, definition, who, days)
    out.print(f"Approved by {approval.person} until {approval.until:%Y-%m-%d}: {definition.hash}", soft_wrap=True)
