"""``umbel model``: what a base is made of and what its quantization costs."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer
from rich.table import Table

from umbel.cli.console import err, out

app = typer.Typer(help="What a base is made of and what its quantization costs.", no_args_is_help=True)


@app.callback()
def _model() -> None:
    """What a base is made of and what its quantization costs."""


@app.command()
def inspect(
    options: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", metavar="KEY=VALUE", help="An option of a run, such as model.name; repeatable."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers/--parts", help="Every layer, or the parts alone.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show bytes of every part and layer, and each layer's error against its float32 weight."""
    from umbel.cli.options import parse_overrides
    from umbel.config import RunConfig

    config = RunConfig.from_flat(parse_overrides(options or []))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with err.status("loading the model"):
        from mllm.inspect import part_sizes
        from mllm.warm import load_configured

        base = load_configured(config)
        parts = part_sizes(base.model)
    report = base.report
    if as_json:
        body: dict[str, Any] = {"parts": [_part(part) for part in parts], **report.to_dict()}
        out.print(json.dumps(body), markup=False, soft_wrap=True)
        return
    out.print(report.summary(), markup=False, soft_wrap=True)
    table = _table("part", "parameters", "bytes")
    for part in parts:
        if part.values:
            table.add_row(part.part, f"{part.values:,}", f"{part.bytes:,}")
    out.print(table)
    if not layers or not report.modules:
        return
    table = _table("layer", "stored as", "bytes before", "bytes", "error")
    for module in report.modules:
        table.add_row(module.path, module.backend, f"{module.before:,}", f"{module.after:,}", f"{module.error:.2%}")
    out.print(table)


def _part(part: Any) -> dict[str, Any]:
    return {"part": part.part, "parameters": part.values, "bytes": part.bytes}


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table
