"""Runs every benchmark, one after the other, or lists them.

python -m benchmarks            # all of them; takes the better part of an hour
python -m benchmarks --list
"""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.output import finish, parser

_ON_REQUEST = {"smollm"}
"""Not part of a run of all: an hour by itself, and weights that are not among the dependencies."""
_HELPERS = {"__main__", "cells", "observed", "output", "real_run", "simulators"}


def found() -> dict[str, str]:
    """Name of each benchmark and the first line of its module."""
    result = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in _HELPERS:
            spec = importlib.util.find_spec(f"benchmarks.{module.name}")
            source = Path(spec.origin).read_text() if spec and spec.origin else ""
            result[module.name] = source.split('"""')[1].strip().splitlines()[0]
    return result


def main() -> None:
    """Runs or lists; a benchmark that fails is reported and the others still run."""
    options = parser("The benchmarks of umbel.")
    options.add_argument("--list", action="store_true", help="only say what there is")
    arguments = options.parse_args()
    benchmarks = found()
    if arguments.list:
        finish(benchmarks, as_json=arguments.json)
        return
    figures: dict[str, Any] = {}
    for name, title in ((name, title) for name, title in benchmarks.items() if name not in _ON_REQUEST):
        print(f"== {name}: {title}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        figures[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else "failed"
        print(json.dumps({name: figures[name]}), file=sys.stderr, flush=True)
    finish(figures, as_json=arguments.json)
    if "failed" in figures.values():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
