"""What a run leaves behind: the adapter that PEFT loads, its model card, the report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from coordinator.model_card import write_model_card
from coordinator.report import write_report
from coordinator.run_folder import RunFolder
from mllm.altered import write_alterations
from mllm.warm import WarmModel
from umbel.adapter import Vector
from umbel.errors import RunError
from umbel.files import fsync_folder
from umbel.side import SideTerm


def leave_results(
    folder: RunFolder, warm: WarmModel, adapter: Vector, side: Mapping[str, SideTerm] | None = None
) -> None:
    """Writes ``adapter/``, its model card and ``report.html`` from the metrics so far; replaces older ones.

    Side terms become additional ranks of the adapter, so that plain PEFT loads what the run evaluated.

    Raises:
        RunError: the folder cannot be written; an older adapter is then still whole.
    """
    _replace_adapter(folder, warm, adapter, side)
    describe_results(folder)


def describe_results(folder: RunFolder) -> None:
    """Writes the model card and ``report.html`` from the metrics so far. Raises RunError as :func:`leave_results`."""
    write_model_card(folder.path)
    write_report(folder.path)


def _replace_adapter(folder: RunFolder, warm: WarmModel, adapter: Vector, side: Mapping[str, SideTerm] | None) -> None:
    """Saves beside and renames, so that ``adapter/`` is never half there."""
    try:
        made, old = folder.path / ".adapter.new", folder.path / ".adapter.old"
        for leftover in (made, old):  # of a process that was killed here; the run folder is locked by this one
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.mkdir()
        try:
            warm.tuned.save(made, adapter, side)
            write_alterations(made, folder.config.model)
            if folder.adapter.exists():
                os.replace(folder.adapter, old / "adapter")
            os.replace(made, folder.adapter)
            fsync_folder(folder.path)
        finally:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{folder.adapter} cannot be written ({error.strerror}): free some space and run again to resume."
        ) from None
