"""A copy of what a clone of this repository holds: the app as a researcher has it, without local leftovers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("umbel", "mllm", "privacy", "strategies", "client", "coordinator", "simulations")
"""What travels to the sites, and nothing else."""


def tracked() -> list[str]:
    """Paths of all files under version control; outside a clone, of all files of the project's own folders."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode == 0:
        return sorted(name for name in found.stdout.split("\0") if name and (ROOT / name).is_file())
    top = [ROOT / name for name in (*PACKAGES, "deploy", "tests", "benchmarks", "docs")]
    files = [path for folder in top for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def copy_checkout(target: Path) -> Path:
    """Copies the tracked files to ``target`` and returns it."""
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    return target


def replace_client(app: Path, module: str, source: Path) -> None:
    """Makes ``module`` (a copy of ``source``) the ClientApp of the copy in ``app``; it may wrap the real one."""
    shutil.copyfile(source, app / f"{module}.py")
    path = app / "pyproject.toml"
    text, count = re.subn(r'(?m)^clientapp = ".*"$', f'clientapp = "{module}:app"', path.read_text("utf-8"))
    assert count == 1
    text, count = re.subn(r"(?m)^fab-include = \[$", f'fab-include = [\n    "/{module}.py",', text)
    assert count == 1
    path.write_text(text, "utf-8")
