"""A command group that imports a command's module only when that command is used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import click
import typer
from typer.core import TyperGroup


class LazyCommand(click.Command):
    """Stands for the typer ``app`` of a module until it is called; shows its help line without importing it."""

    def __init__(self, name: str, module: str, help_line: str) -> None:
        super().__init__(name, help=help_line, short_help=help_line)
        self.module = module

    def load(self) -> click.Command:
        """The real command, a group when the module's app has several commands."""
        app: typer.Typer = importlib.import_module(self.module).app
        app._add_completion = False  # shell completion belongs to the whole command, not to each part
        command = typer.main.get_command(app)
        command.name = self.name
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Click asks for the context first and then invokes ``ctx.command``: the real one."""
        return self.load().make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """Commands by name: module and help line. A module that is not installed is left out."""

    def __init__(self, modules: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        commands: Sequence[click.Command] = [
            LazyCommand(name, module, line) for name, (module, line) in modules.items() if _exists(module)
        ]
        super().__init__(commands=commands, **attributes)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
