"""``umbel bundle``: an offline installation, and runs that carry no code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import err, out

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Offline installations, and runs without code.")


@app.command()
def write(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    project: Annotated[Path | None, typer.Option(help="Checkout of umbel, or a wheel of it.")] = None,
    python: Annotated[str | None, typer.Option(help="Python of the target, as 3.11; this one's by default.")] = None,
    platform: Annotated[
        list[str] | None, typer.Option(help="Platform tag of the target, as manylinux_2_28_x86_64; may be repeated.")
    ] = None,
    pip: Annotated[
        list[str] | None, typer.Option(help="More for pip, as --pip=--extra-index-url=URL; may be repeated.")
    ] = None,
) -> None:
    """Write wheels, images list, deployment files, checksums and install.sh for a machine without a network."""
    from deploy.bundle import Plan, write_bundle

    checkout = Path(__file__).resolve().parents[2]
    with err.status("collecting wheels"):
        sums = write_bundle(Plan(project or checkout, target, python, tuple(platform or ()), tuple(pip or ())))
    out.print(f"written  {target}", markup=False, soft_wrap=True)
    out.print(f"SHA256SUMS has SHA-256 {sums}", markup=False, soft_wrap=True)


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sums: Annotated[str | None, typer.Option(help="SHA-256 of SHA256SUMS, as its maker told it.")] = None,
) -> None:
    """Check every file of a bundle: nothing missing, nothing added, nothing altered."""
    from deploy.bundle import verify_bundle

    out.print(f"ok  {verify_bundle(target, sums=sums)} files in {target}", markup=False, soft_wrap=True)


@app.command()
def thin(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    options: Annotated[
        list[str] | None, typer.Option("-c", "--config", metavar="KEY=VALUE", help="Options, as umbel run takes them.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the app.")] = "umbel-run",
) -> None:
    """Write a Flower app of configuration alone: its code is what each side has installed."""
    from deploy.thin import write_thin
    from umbel.cli.options import parse_overrides

    write_thin(target, parse_overrides(options or []), name=name)
    out.print(f"written  {target}", markup=False, soft_wrap=True)
