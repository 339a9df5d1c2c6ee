"""Where built bases lie, and how they get there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mllm.bases.recipe import Recipe
from umbel.errors import ModelError, RunError
from umbel.files import sha256_of
from umbel.paths import home

NAMES = ("demo",)
COMMITTED = Path(__file__).parent / "demo"
RECORD = "recipe.json"
_NEEDED = ("config.json", "model.safetensors", RECORD)

Progress = Callable[[str, int, int], None]


def locate(name: str) -> Path | None:
    """The directory of base ``name`` as the present recipe makes it, or None when there is none.

    First the one built under ``UMBEL_HOME``, then the committed copy, if it was made by the present recipe from the
    data that is installed. None also for names that are no base of ours.
    """
    if name not in NAMES:
        return None
    digest = _hash(Recipe())
    built = _place(name, digest)
    if all((built / file).is_file() for file in _NEEDED):
        return built
    return COMMITTED if _recorded(COMMITTED) == digest else None


def build(
    name: str, progress: Progress = lambda stage, done, total: None, *, from_scratch: bool = False,
    recipe: Recipe | None = None,
) -> Path:  # fmt: skip
    """Puts base ``name`` under ``UMBEL_HOME`` and returns its directory.

    What is there already, made by the same recipe, is left alone. Else the committed copy is installed when the
    present recipe made it, after its files' hashes were checked; else the base is trained, about four
    minutes on one core. The directory appears by one rename, whole or not at all.

    Args:
        name: ``demo``.
        progress: called as ``progress(stage, done, total)``.
        from_scratch: train in any case, and replace what is there.
        recipe: another recipe than the present one, for experiments; it gets a directory of its own.

    Raises:
        ModelError: the name is unknown, the committed copy is damaged, or the training diverged.
        DataError: the training data is missing.
        RunError: ``UMBEL_HOME`` cannot be written.
    """
    if name not in NAMES:
        raise ModelError(f"Base {name!r} has no recipe here: choose one of {', '.join(NAMES)}.")
    recipe = recipe or Recipe()
    digest = _hash(recipe)
    target = _place(name, digest)
    if not from_scratch and all((target / file).is_file() for file in _NEEDED):
        return target
    with _building(target) as folder:
        if not from_scratch and _recorded(COMMITTED) == digest:
            _install(folder, progress)
        else:
            _train(folder, name, recipe, digest, progress)
    return target


def _train(folder: Path, name: str, recipe: Recipe, digest: str, progress: Progress) -> None:
    from mllm.bases import demo
    from mllm.tasks import easy_vqa

    made = demo.train(recipe, progress)
    progress("measure", 0, 1)
    figures = demo.measure(made)
    progress("measure", 1, 1)
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    record = {
        "name": name,
        "hash": digest,
        "recipe": asdict(recipe),
        "data": easy_vqa.fingerprint(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "numpy")},
        },
        "figures": figures,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _install(folder: Path, progress: Progress) -> None:
    files: dict[str, str] = json.loads((COMMITTED / RECORD).read_text("utf-8"))["files"]
    for done, (name, expected) in enumerate(sorted(files.items()), start=1):
        source = COMMITTED / name
        if not source.is_file() or sha256_of(source) != expected:
            raise ModelError(
                f"The shipped file {source} is missing or differs from its record: reinstall umbel, or train the base "
                "with --from-scratch."
            )
        shutil.copyfile(source, folder / name)
        progress("install", done, len(files))
    shutil.copyfile(COMMITTED / RECORD, folder / RECORD)


@contextmanager
def _building(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well."""
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        yield folder
        folder.chmod(0o755)
        old = folder.with_name(folder.name + ".old")
        if target.exists():
            os.rename(target, old)
        os.rename(folder, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror or error}): free some space or set UMBEL_HOME to a folder "
            "that you may write to."
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _hash(recipe: Recipe) -> str:
    from mllm.tasks import easy_vqa

    return recipe.hash(easy_vqa.fingerprint())


def _place(name: str, digest: str) -> Path:
    return home() / "bases" / f"{name}-{digest[:16]}"


def _recorded(folder: Path) -> str | None:
    """The recipe hash that a base was recorded with, or None if there is no readable record."""
    try:
        record: Any = json.loads((folder / RECORD).read_text("utf-8"))
        return str(record["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
