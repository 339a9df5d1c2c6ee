"""Where umbel keeps what outlives a process."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``UMBEL_HOME``, or ``~/.cache/umbel``: built bases, site state, the simulation's node state.

    The folder is not created here.
    """
    value = os.environ.get("UMBEL_HOME")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "umbel"


def runs_root(directory: str = "runs") -> Path:
    """The folder of all runs: a relative ``directory`` counts from UMBEL_ROOT, or the working directory."""
    return (Path(os.environ.get("UMBEL_ROOT") or Path.cwd()) / Path(directory).expanduser()).absolute()
