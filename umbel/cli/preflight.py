"""``umbel preflight``: is this machine fit to join?"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import out
from umbel.errors import DeployError

if TYPE_CHECKING:
    from deploy.preflight import Check

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look whether this machine is fit to join.")

Home = Annotated[Path, typer.Option(help="Where state is kept.")]
Disk = Annotated[float, typer.Option(min=0, help="GiB that must be free there.")]
Memory = Annotated[float, typer.Option(min=0, help="GiB of memory that must be available.")]
Model = Annotated[str | None, typer.Option(help="Base that must fit in memory, as model.name.")]
Listen = Annotated[list[str] | None, typer.Option(help="Address that must be free, HOST:PORT; may be repeated.")]
Identity = Annotated[list[Path] | None, typer.Option(help="Folder with cert.pem, key.pem and ca.pem; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command()
def site(
    coordinator: Annotated[str | None, typer.Option(help="The coordinator's address for sites, HOST:PORT.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The federation's ca.pem.")] = None,
    node_key: Annotated[Path | None, typer.Option(help="The SuperNode's private key.")] = None,
    identity: Identity = None,
    home: Home = Path("/var/lib/umbel"),
    disk: Disk = 5.0,
    memory: Memory = 2.0,
    model: Model = None,
    listen: Listen = None,
    as_json: Json = False,
) -> None:
    """Check a site: clock, disk, memory, ports, certificates, keys, the coordinator, and whether the base fits."""
    from deploy.preflight import check_clock, check_closed, check_node_key, check_reachable

    checks = _machine(home, disk, memory, model, listen, identity)
    if node_key is not None:
        checks.append(("node key", partial(check_node_key, node_key)))
    if coordinator is not None:
        if ca is None:
            raise DeployError("The coordinator can be checked with --ca only: give the federation's ca.pem.")
        checks += [
            ("coordinator", partial(check_reachable, coordinator, ca)),
            ("clock", partial(check_clock, coordinator, ca)),
            ("closed", partial(check_closed, coordinator, ca)),
        ]
    _report(checks, as_json)


@app.command()
def coordinator(
    identity: Identity = None,
    home: Home = Path("/var/lib/umbel"),
    disk: Disk = 20.0,
    memory: Memory = 4.0,
    model: Model = None,
    listen: Listen = None,
    ntp: Annotated[str | None, typer.Option(help="Time server to compare the clock with, HOST or HOST:PORT.")] = None,
    as_json: Json = False,
) -> None:
    """Check a coordinator: clock, disk, memory, ports, certificates, and whether the base fits."""
    from deploy.preflight.time_server import check_time_server

    checks = _machine(home, disk, memory, model, listen, identity)
    if ntp is not None:
        checks.append(("clock", partial(check_time_server, ntp)))
    _report(checks, as_json)


def _machine(
    home: Path,
    disk: float,
    memory: float,
    model: str | None,
    listen: list[str] | None,
    identity: list[Path] | None,
) -> list[tuple[str, Check]]:
    from deploy.preflight import check_folder, check_identity, check_memory, check_port

    checks: list[tuple[str, Check]] = [
        ("disk", partial(check_folder, home, disk)),
        ("memory", partial(check_memory, memory)),
    ]
    if model is not None:
        checks.append(("base", partial(_base, model)))
    checks += [("port", partial(check_port, address)) for address in listen or ()]
    checks += [("certificate", partial(check_identity, folder)) for folder in identity or ()]
    return checks


def _base(name: str) -> str:
    from deploy.preflight import check_model, check_stored, check_training
    from mllm.zoo.figures import published_bytes, training_bytes

    known = training_bytes(name)
    if known is not None:
        return check_training(name, *known)
    stored = published_bytes(name)
    if stored is not None:
        return check_stored(name, stored)
    from mllm.checkpoint import resolve

    return check_model(resolve(name))


def _report(checks: list[tuple[str, Check]], as_json: bool) -> None:
    from deploy.preflight import run_checks

    failed = 0
    for found in run_checks(checks):
        failed += not found.good
        if as_json:
            line = json.dumps({"check": found.check, "ok": found.good, "said": found.said})
        else:
            line = f"{'ok  ' if found.good else 'FAIL'}  {found.check:<12} {found.said}"
        out.print(line, markup=False, soft_wrap=True)
    if failed:
        raise DeployError(f"{failed} of {len(checks)} checks failed: mend what they say and run preflight again.")
