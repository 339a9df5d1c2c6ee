"""``umbel chat QUESTION``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from umbel.cli.console import err, out
from umbel.config.model import Quantization
from umbel.errors import ConfigError

app = typer.Typer(add_completion=False)


def backend(name: str) -> Quantization:
    """The quantization of this name.

    Raises:
        ConfigError: it is unknown.
    """
    for known in get_args(Quantization):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"Quantization {name!r} is unknown: choose one of {', '.join(get_args(Quantization))}.")


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="What to ask; without one, every line of stdin is.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="An image; may be repeated.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Id or folder of a run, or an adapter's folder.")] = None,
    base: Annotated[
        str | None, typer.Option(help="The base, where no run names it: demo, a directory, a hub id.")
    ] = None,
    quantization: Annotated[str, typer.Option(help="Of a base that no run decides about.")] = "auto",
    most_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 32,
    augment: Annotated[int, typer.Option(min=1, help="Average so many views of each image.")] = 1,
    tuning_steps: Annotated[int, typer.Option(min=0, help="Steps of test-time prompt tuning; needs --augment.")] = 0,
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
) -> None:
    """Ask a model, with or without an adapter, about images. The answer goes to stdout."""
    chosen = backend(quantization)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from umbel.cli.subject import load_subject

    with err.status("loading the model"):
        from mllm.inference import Answerer
        from mllm.tasks.example import Example, ImageSource

        subject = load_subject(adapter, base, chosen, directory)
        sources = tuple(ImageSource(path.expanduser(), origin="--image") for path in image or ())
        for source in sources:
            source.open()
        answerer = Answerer(
            subject.model, subject.collator, most_tokens=most_tokens, augment=augment, tuning_steps=tuning_steps
        )
    for line in [question] if question is not None else sys.stdin:
        if line.strip():
            (found,) = answerer.answer([Example(sources, line.strip(), "")])
            out.print(found.text, markup=False, soft_wrap=True)
            ended = "" if found.complete else ", cut at --most-tokens"
            err.print(f"(probability {found.probability:.2f}{ended})", markup=False)
