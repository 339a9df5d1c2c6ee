"""``umbel demo``: the built-in example."""

from __future__ import annotations

from typing import Annotated

import typer

from umbel.cli.run import execute, plan

app = typer.Typer(add_completion=False)

_SHORTENED = (
    "evaluate.central=true",
    "evaluate.limit=500",
    "evaluate.main=2000",
    "evaluate.others=750",
    "model.feature-cache=memory",
)
"""What a demonstration adds: the central comparison; evaluation on no more questions than a glance needs; and each
image seen once by the frozen tower, since easy-VQA asks ten questions about it."""


@app.command()
def demo(
    options: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", metavar="KEY=VALUE", help="Change an option; may be repeated."),
    ] = None,
) -> None:
    """Run the built-in example: 20 clients, 8 rounds, easy-VQA, default options, and a central comparison.

    The base model is built first where that has not happened yet.
    """
    settled = plan([*_SHORTENED, *(options or [])], None, None, prefix="demo-")
    if settled.config.model.name == "demo":
        _prepare()
    execute(settled)


def _prepare() -> None:
    """Puts the demo base under ``UMBEL_HOME``: Flower's processes have the bundle alone, without the shipped copy."""
    from mllm.bases import build

    build("demo")
