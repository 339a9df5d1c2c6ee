"""``umbel config``: every option with its type, default and meaning."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.table import Table

from umbel.cli.console import out
from umbel.config import RunConfig, Section
from umbel.errors import ConfigError

app = typer.Typer(add_completion=False)


def describe(group: str) -> list[tuple[str, str, str, str]]:
    """Options of one group: dotted key, what is allowed, default as TOML, meaning."""
    section = RunConfig.model_fields[group].annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    rows = []
    for name, field in section.model_fields.items():
        limits = [_limit(item) for item in field.metadata]
        allowed = " ".join([_allowed(field.annotation), *filter(None, limits)])
        rows.append(
            (
                f"{group}.{field.alias or name}",
                allowed,
                _toml(field.default),
                " ".join((field.description or "").split()),
            )
        )
    return rows


def _allowed(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    return {bool: "true | false", int: "integer", float: "number", str: "text"}.get(annotation, str(annotation))


def _limit(item: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " ".join(f"{sign} {getattr(item, key)}" for key, sign in signs.items() if hasattr(item, key))


def _toml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str | bool | int) else repr(value)


@app.command()
def show(
    group: Annotated[str | None, typer.Argument(help="One group only, for example 'privacy'.")] = None,
) -> None:
    """Show every option with its default and meaning; change one with -c key=value."""
    if group is not None and group not in RunConfig.model_fields:
        raise ConfigError(f"Group {group!r} is unknown: choose one of {', '.join(RunConfig.model_fields)}.")
    for name in [group] if group else RunConfig.model_fields:
        section = RunConfig.model_fields[name].annotation
        title = (inspect.getdoc(section) or "").splitlines()[0] if section else ""
        table = Table(title=f"[bold]{name}[/bold] – {title}", title_justify="left", box=None, pad_edge=False)
        table.add_column("option", style="cyan", no_wrap=True)
        table.add_column("default", no_wrap=True)
        table.add_column("allowed", style="dim")
        table.add_column("meaning", ratio=1)
        for key, allowed, default, meaning in describe(name):
            table.add_row(key, default, allowed, meaning.replace("``", ""))
        out.print(table)
        out.print()
