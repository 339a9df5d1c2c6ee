"""``umbel strategies``: the federated LoRA methods and what each can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from umbel.cli.console import out

app = typer.Typer(add_completion=False)


def rows() -> list[dict[str, Any]]:
    """One dictionary a method: its name, its number of passes, and every fact that the planner reads."""
    from strategies.refusals import PADDABLE
    from strategies.registry import STRATEGIES

    return [
        {"name": name, "passes": cls.passes, "paddable": name in PADDABLE, **asdict(cls.facts)}
        for name, cls in STRATEGIES.items()
    ]


@app.command()
def show(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Show the federated LoRA methods and what each can do."""
    if as_json:
        typer.echo(json.dumps(rows(), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("method", style="cyan", no_wrap=True)
    for name in ("secagg", "exact", "private", "ranks"):
        table.add_column(name, no_wrap=True)
    table.add_column("up", overflow="fold")
    table.add_column("note", ratio=1)
    for row in rows():
        ranks = "mixed" if row["heterogeneous_ranks"] else "padded" if row["paddable"] else "same"
        flags = ["yes" if row[key] else "no" for key in ("linear", "exact", "private")]
        table.add_row(row["name"], *flags, ranks, row["up"], row["note"])
    out.print(table)
    out.print()
    out.print(
        "secagg: needs only the sum of uploads. exact: equals the average of the clients' products B A. private: "
        "noise is not multiplied by noise. Choose with -c strategy.name=METHOD; docs/strategies.md says when."
    )
