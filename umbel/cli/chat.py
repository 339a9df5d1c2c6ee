"""``umbel chat QUESTION``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import err, out
from umbel.cli.subject import (
    AdapterOption,
    AugmentOption,
    BaseOption,
    FramesOption,
    MostTokensOption,
    QuantizationOption,
    RunsOption,
    TuningStepsOption,
    backend,
    load_subject,
)
from umbel.config.task import FRAMES

app = typer.Typer(add_completion=False)


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="What to ask; without one, every line of stdin is.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="An image; may be repeated.")] = None,
    video: Annotated[list[Path] | None, typer.Option("--video", help="A video, after the images.")] = None,
    adapter: AdapterOption = None,
    base: BaseOption = None,
    quantization: QuantizationOption = "auto",
    most_tokens: MostTokensOption = 32,
    augment: AugmentOption = 1,
    tuning_steps: TuningStepsOption = 0,
    frames: FramesOption = FRAMES,
    directory: RunsOption = "runs",
) -> None:
    """Ask a model, with or without an adapter, about images. The answer goes to stdout."""
    chosen = backend(quantization)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with err.status("loading the model"):
        from mllm.inference import Answerer
        from mllm.tasks.example import Example, ImageSource
        from mllm.video import frame_sources

        subject = load_subject(adapter, base, chosen, directory)
        sources = tuple(ImageSource(path.expanduser(), origin="--image") for path in image or ())
        sources += tuple(s for path in video or () for s in frame_sources(path.expanduser(), frames, "--video"))
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
