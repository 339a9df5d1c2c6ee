"""``umbel site``: a site's own agent: its policy, its budget, its log."""

from __future__ import annotations

import getpass
import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from umbel.cli import site_log, site_review
from umbel.cli.console import out

app = typer.Typer(help="A site's own agent: its policy, its budget, its log.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(envvar="UMBEL_SITE", help="The site's folder, with site.toml.")]
HERE = Path()
app.add_typer(site_log.app, name="log")
app.command("review")(site_review.review)


@app.callback()
def _site() -> None:
    """A site's own agent: its policy, its budget, its log."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The site's folder; made when missing.")],
    name: Annotated[str, typer.Option(help="The site's name, as the federation will know it.")] = "",
) -> None:
    """Makes a site's folder: a policy that denies everything but a dry run, and fresh keys."""
    from client.agent.house import init as make

    house = make(folder, name or folder.expanduser().absolute().name)
    public = house.identity().public.hex()
    out.print(f"Site {house.policy.name} in {house.folder}", soft_wrap=True, markup=False)
    out.print(f"Public key: {public}")
    out.print("Next: enrol the public key, write down in site.toml what is allowed, then umbel site check.")


@app.command()
def check(
    folder: Folder = HERE,
    load: Annotated[bool, typer.Option(help="Also load the models and read the data.")] = True,
) -> None:
    """Looks at policy, keys, certificates, ledger, log, data and models; fails with the first thing that is wrong."""
    from client.agent.checks import checks

    for line in checks(folder, load=load):
        out.print(line, soft_wrap=True, markup=False)
    out.print("The site is ready.")


@app.command()
def serve(
    folder: Folder = HERE,
    metrics: Annotated[str, typer.Option(help="host:port or unix:/path for Prometheus; empty shows nothing.")] = "",
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="The log is lost: begin a new one, whose first line says so.")
    ] = False,
) -> None:
    """Runs the agent until SIGTERM or Ctrl-C."""
    from client.agent.books import accept_loss as accept
    from client.agent.books import require_log
    from client.agent.checks import no_gpu
    from client.agent.house import House
    from client.agent.metered import metered
    from client.agent.server import AgentServer
    from umbel.logs import structured

    structured()
    house = House.open(folder)
    house.require_access()
    if accept_loss:
        accept(house.log, house.ledger, house.identity(), person=_login())
    require_log(house.log, house.ledger)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with metered(house, metrics) as wrap, AgentServer(house, wrap=wrap) as server:
        if missing := no_gpu(house):
            logging.getLogger("umbel.agent").warning(missing)
        for address in server.addresses:
            out.print(f"Listening on {address}", soft_wrap=True, markup=False)
        out.print(f"Site {house.policy.name} is ready.", soft_wrap=True, markup=False)
        ended.wait()
        out.print("Ending.")


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.geteuid()}"


@app.command()
def status(
    folder: Folder = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Asks the running agent what it does."""
    from client.agent.desk import ask_status
    from client.agent.house import House

    answer = ask_status(House.open(folder))
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for key, value in answer.items():
        out.print(f"{key:12} {', '.join(value) if isinstance(value, list) else value}", soft_wrap=True, markup=False)


@app.command()
def ledger(
    folder: Folder = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Shows what each data set has spent over the site's lifetime, and what is left."""
    from rich.table import Table

    from client.agent.desk import budgets
    from client.agent.house import House

    rows = budgets(House.open(folder))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("data", "unit", "epsilon", "budget", "delta", "left", "releases"):
        table.add_column(name, justify="left" if name in ("data", "unit") else "right")
    for row in rows:
        table.add_row(
            str(row["data"]),
            str(row["unit"]),
            f"{row['epsilon']:.4f}",
            "-" if row["budget"] is None else f"{row['budget']:g}",
            f"{row['delta']:g}",
            "-" if row["left"] is None else f"{row['left']:.4f}",
            str(row["releases"]),
        )
    out.print(table)
    for name in _mixed(rows):
        out.print(
            f"{name}: the client row counts client-level releases alone; the example-level ones put no bound on the "
            "client as a whole.",
            soft_wrap=True,
            markup=False,
        )


def _mixed(rows: list[dict[str, Any]]) -> list[str]:
    """Data sets with releases of both units: the example row counts all, so it counts more than the client row."""
    counts = {(row["data"], row["unit"]): int(row["releases"]) for row in rows}
    return [
        str(name)
        for (name, unit), count in counts.items()
        if unit == "client" and 0 < count < counts.get((name, "example"), 0)
    ]
