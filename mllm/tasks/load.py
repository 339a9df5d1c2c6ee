"""load_task: from a configuration to the data."""

from __future__ import annotations

from mllm.tasks import easy_vqa, folder
from mllm.tasks.base import Task
from umbel.config import TaskConfig
from umbel.errors import DataError

_LOADERS = {"easy-vqa": easy_vqa.load, "folder": folder.load}


def load_task(config: TaskConfig) -> Task:
    """Loads the task that ``config`` names.

    Raises:
        DataError: the data is missing, damaged or empty, or the task is unknown.
    """
    loader = _LOADERS.get(config.name)
    if loader is None:
        raise DataError(f"Task {config.name!r} is unknown: set task.name to one of {sorted(_LOADERS)}.")
    return loader(config)
