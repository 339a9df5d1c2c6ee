"""Which model a command asks, and how: the options that such commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from umbel.config.model import REFUSED_BACKENDS, Quantization
from umbel.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mllm.inference import Subject


AdapterOption = Annotated[str | None, typer.Option(help="Id or folder of a run, or an adapter's folder.")]
BaseOption = Annotated[str | None, typer.Option(help="The base, where no run names it: demo, a directory, a hub id.")]
QuantizationOption = Annotated[str, typer.Option(help="Of a base that no run decides about.")]
MostTokensOption = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
AugmentOption = Annotated[int, typer.Option(min=1, help="Average so many views of each image.")]
TuningStepsOption = Annotated[int, typer.Option(min=0, help="Steps of test-time prompt tuning; needs --augment.")]
FramesOption = Annotated[int, typer.Option(min=1, max=256, help="Most frames of a video.")]
RunsOption = Annotated[str, typer.Option(help="Folder of all runs.")]


def backend(name: str) -> Quantization:
    """The quantization of this name.

    Raises:
        ConfigError: it is unknown.
    """
    for known in get_args(Quantization):
        if name == known:
            return known  # type: ignore[no-any-return]
    why = f"refused ({REFUSED_BACKENDS[name]})" if name in REFUSED_BACKENDS else "unknown"
    raise ConfigError(f"Quantization {name!r} is {why}: choose one of {', '.join(get_args(Quantization))}.")


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
