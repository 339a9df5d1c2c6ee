"""``umbel benchmark NAME``: the benchmarks of a checkout, with their own options."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import out
from umbel.errors import ConfigError

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def benchmark(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="Which one, for example tokens; without it they are listed.")
    ] = None,
) -> None:
    """Run a benchmark of this checkout; what follows the name goes to it (--json, --help)."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks" / "__main__.py").is_file():
        raise ConfigError("Benchmarks are part of a checkout, not of an installation: run umbel from a checkout.")
    # In a process of its own: Opacus installs a package of the same name, which "-m" in the checkout passes over.
    listing = [sys.executable, "-m", "benchmarks", "--list", "--json"]
    listed = subprocess.run(listing, cwd=checkout, capture_output=True, text=True, check=True)
    known = json.loads(listed.stdout.splitlines()[-1])
    if name in (None, "--help", "-h"):
        for key, title in known.items():
            out.print(f"{key:<18} {title}", markup=False, soft_wrap=True)
        return
    if name not in known:
        raise ConfigError(f"Benchmark {name!r} is unknown: choose one of {', '.join(known)}.")
    command = [sys.executable, "-m", f"benchmarks.{name}", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=checkout, check=False).returncode)
