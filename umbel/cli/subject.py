"""Which model a command asks: ``--adapter RUN|DIR``, ``--base NAME``, or both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from umbel.config.model import Quantization
from umbel.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mllm.inference import Subject


def load_subject(adapter: str | None, base: str | None, quantization: Quantization, directory: str) -> Subject:
    """The model that answers.

    Args:
        adapter: id or folder of a run, which then decides everything about its base; or a folder of an adapter.
        base: what to ask without an adapter, or what an adapter's folder stands on.
        quantization: of a base that no run decides about.
        directory: of all runs.

    Raises:
        UmbelError: nothing, or nothing usable, was named.
    """
    from mllm.inference import load_adapter_folder, load_plain

    if adapter is None:
        if base is None:
            raise ConfigError("There is no model to ask: name a run or an adapter's folder with --adapter, or --base.")
        return load_plain(base, quantization)
    folder = _run_folder(adapter, directory)
    if folder is None:
        path = Path(adapter).expanduser()
        if not (path / "adapter_config.json").is_file():
            raise RunError(
                f"{adapter!r} is neither a run nor a folder with adapter_config.json: list the runs with 'umbel runs'."
            )
        return load_adapter_folder(path, base, quantization)
    if base is not None:
        raise ConfigError(f"Run {folder.name} names its own base: leave --base out.")
    return _of_run(folder)


def _run_folder(adapter: str, directory: str) -> Path | None:
    from coordinator.run_folder import find_run

    path = Path(adapter).expanduser()
    for name in (adapter, str(path.parent) if path.name == "adapter" else ""):
        try:
            return find_run(name, directory)
        except RunError:
            continue
    return None


def _of_run(folder: Path) -> Subject:
    import hashlib

    from coordinator.export import adapter_of
    from coordinator.remeasure import load_adapter
    from coordinator.run_folder import read_config
    from mllm.inference import Subject
    from mllm.warm import warm_model

    config = read_config(folder)
    adapter_of(folder)  # before anything heavy is loaded
    warm = warm_model(config)
    vector, side = load_adapter(folder, warm.tuned.spec)
    warm.tuned.load(vector, side)
    digest = hashlib.sha256(vector.tobytes()).hexdigest()
    return Subject(warm.tuned.model.eval(), warm.collator, f"{warm.base.hash}/{config.model!r}/{digest}")
