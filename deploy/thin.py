"""A thin bundle: a Flower app of configuration alone. All code runs from each side's own reviewed installation.

What a researcher submits this way cannot bring code to a site: the ServerApp and the ClientApp are named, and found
among the installed packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from umbel import __version__
from umbel.config import RunConfig
from umbel.errors import DeployError
from umbel.files import write_atomic

SERVER_APP = "coordinator.server_app:app"
CLIENT_APP = "client.client_app:app"
_README = "# {name}\n\nA run of umbel: configuration alone, no code.\n"


def write_thin(folder: Path, options: Mapping[str, Any], *, name: str = "umbel-run", publisher: str = "umbel") -> None:
    """Writes ``pyproject.toml`` and ``README.md`` of a Flower app without code.

    Args:
        folder: made when missing; must not hold anything else.
        options: flat options of the run, over the defaults of RunConfig; all of them are written out.
        name: of the app.
        publisher: of the app.

    Raises:
        ConfigError: an option is unknown or cannot be combined.
        DeployError: the folder holds other files.
    """
    config = RunConfig.from_flat(options)
    folder = folder.expanduser().absolute()
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if set(others) - {"pyproject.toml", "README.md"}:
        raise DeployError(f"{folder} holds other files, as {others[0]}: give a new folder, so that nothing strays in.")
    body = {
        "project": {"name": name, "version": __version__, "description": "A run of umbel.", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": publisher,
                    "fab-include": ["/README.md"],
                    "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
                    "config": config.to_nested(),
                }
            }
        },
    }
    write_atomic(folder / "README.md", _README.format(name=name).encode())
    write_atomic(folder / "pyproject.toml", tomli_w.dumps(body).encode())
