"""``umbel base``: base models that umbel builds itself."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Base models that umbel builds itself, offline.", no_args_is_help=True)


@app.callback()
def _base() -> None:
    """Base models that umbel builds itself, offline."""


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Which base: demo.")] = "demo",
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train it (about 5 minutes on 2 cores) even if a copy is at hand.")
    ] = False,
) -> None:
    """Puts a base under UMBEL_HOME: from the copy that was shipped, or by training it."""
    import json

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mllm import bases

    console = Console()
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        rows = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in rows:
                rows[stage] = bars.add_task(stage, total=total)
            bars.update(rows[stage], completed=done)

        path = bases.build(name, show, from_scratch=from_scratch)
    figures = json.loads((path / "recipe.json").read_text("utf-8"))["figures"]
    console.print(
        f"Base {name}: {figures['parameters']:,} parameters, {figures['public']:.1%} on public test questions, "
        f"{figures['private']:.1%} on private ones."
    )
    console.print(str(path), soft_wrap=True)
