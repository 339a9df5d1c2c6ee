"""``umbel version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import typer

from umbel import __version__
from umbel.cli.console import out

app = typer.Typer(add_completion=False)

PACKAGES = ("flwr", "ray", "torch", "transformers", "peft", "bitsandbytes", "torchao", "opacus", "dp-accounting")


def versions() -> dict[str, str]:
    """Installed versions by package name, Python first; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@app.command()
def show() -> None:
    """Show the versions of umbel and what it stands on."""
    out.print(f"umbel {__version__}", markup=False)
    for name, number in versions().items():
        out.print(f"{name} {number}", markup=False)
