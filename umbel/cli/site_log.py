"""``umbel site log``: what was asked of the site and what left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from umbel.cli.console import out

app = typer.Typer(help="What was asked of the site and what left it.")
_ROUTINE = frozenset({"number", "time", "kind", "previous", "signature"})


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Option("--site", envvar="UMBEL_SITE", help="The site's folder, with site.toml.")
    ] = Path(),
    last: Annotated[int, typer.Option(help="Lines from the end; 0 shows all.")] = 20,
    kind: Annotated[str, typer.Option(help="Only lines of this kind: asked, left, refused, approved, ...")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The lines as they stand.")] = False,
) -> None:
    """Prints lines of the log, not verified; `umbel site log verify` verifies it."""
    if context.invoked_subcommand is not None:
        return
    from client.agent.audit_log import read_lines
    from client.agent.house import House

    lines = [line for line in read_lines(House.open(folder).log) if not kind or line.get("kind") == kind]
    for line in lines[-last:] if last > 0 else lines:
        if as_json:
            typer.echo(json.dumps(line, sort_keys=True))
        else:
            out.print(_sentence(line), soft_wrap=True, markup=False)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(envvar="UMBEL_SITE", help="The site's folder, with site.toml.")] = Path(),
    noted: Annotated[str, typer.Option(help="An earlier end, NUMBER:HASH, that must still be in the log.")] = "",
) -> None:
    """Reads the whole log and ledger and fails if anything was changed."""
    from client.agent.books import require_log
    from client.agent.desk import verify_books
    from client.agent.house import House

    house = House.open(folder)
    head, lines = verify_books(house, noted)
    require_log(house.log, house.ledger)
    out.print(f"The log holds {head.number} lines and nothing was changed; its end: {head}", soft_wrap=True)
    out.print(f"The ledger goes on from the {lines} lines that the log knows.")


def _sentence(line: dict[str, Any]) -> str:
    facts = []
    for key, value in line.items():
        if key in _ROUTINE or value in ("", [], None):
            continue
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        facts.append(f"{key}={text if len(text) <= 64 or key == 'reason' else text[:61] + '...'}")
    return f"{line.get('number')} {line.get('time')} {line.get('kind')} " + " ".join(facts)
