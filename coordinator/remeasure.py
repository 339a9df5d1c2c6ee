"""Measuring the adapter that a run left, again, on the task's evaluation sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from coordinator.export import adapter_of
from coordinator.run_folder import read_config
from coordinator.tracking import Figures
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import RunError
from umbel.side import SideTerm, unfold_side


def load_adapter(folder: Path, spec: AdapterSpec) -> tuple[Vector, dict[str, SideTerm]]:
    """The run's adapter as the flat vector of ``spec``, and the side terms that were folded into it.

    Raises:
        RunError: there is no adapter, or its file is damaged.
        AdapterError: it does not fit ``spec`` or holds a value that is not finite.
    """
    path = adapter_of(folder) / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it or run again.") from None
    vector, side = unfold_side(spec, tensors)
    spec.check(vector)
    return vector, side


def remeasure(folder: Path, limit: int, progress: Callable[[str], None]) -> dict[str, Figures]:
    """Figures by evaluation set, of the base and adapter that the run's own config names.

    Args:
        limit: most examples of each set; 0 takes all.
        progress: is told what is being done.

    Raises:
        UmbelError: config, base, data or adapter cannot be used.
    """
    config = read_config(folder)
    adapter_of(folder)  # before anything heavy is loaded
    from mllm.tasks.metrics import evaluate
    from mllm.warm import warm_model, warm_task

    progress("loading the data")
    task = warm_task(config)
    progress("loading the model")
    warm = warm_model(config)
    warm.tuned.load(*load_adapter(folder, warm.tuned.spec))
    found = {}
    for name, examples in task.evaluation.items():
        progress(f"measuring {name}")
        measured = evaluate(
            warm.tuned.model, warm.collator, examples, batch_size=config.evaluate.batch_size, limit=limit
        )
        found[name] = Figures.model_validate(asdict(measured))
    return found
