"""Export: a finished run's adapter as a folder that plain PEFT loads, copied whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from umbel.errors import RunError
from umbel.files import fsync_folder

REQUIRED = ("adapter_config.json", "adapter_model.safetensors")


def adapter_of(folder: Path) -> Path:
    """The adapter folder of the run in ``folder``.

    Raises:
        RunError: the run has left no adapter yet.
    """
    adapter = folder / "adapter"
    missing = [name for name in REQUIRED if not (adapter / name).is_file()]
    if missing:
        raise RunError(
            f"Run {folder.name!r} has no adapter yet ({missing[0]} is missing): let it finish by running it again "
            f"with run.id={folder.name}."
        )
    return adapter


def export_adapter(folder: Path, target: Path) -> Path:
    """Copies the run's adapter, model card included, to ``target``; returns ``target``.

    The copy is made beside ``target`` and renamed, so that ``target`` is complete or absent.

    Raises:
        RunError: no adapter, ``target`` exists and is not an empty folder, or it cannot be written.
    """
    adapter = adapter_of(folder)
    target = target.expanduser().absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(f"{target} already exists and is not an empty folder: choose another folder or empty it.")
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        staging.chmod(0o755)
        for source in sorted(adapter.iterdir()):
            if source.is_file() and not source.name.startswith("."):
                shutil.copyfile(source, staging / source.name)
                with (staging / source.name).open("rb") as stream:
                    os.fsync(stream.fileno())
        os.replace(staging, target)  # an empty target folder is replaced
        fsync_folder(target.parent)
    except OSError as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        raise RunError(
            f"{target} cannot be written ({error.strerror}): free some space or choose a folder that you may write to."
        ) from None
    return target
