"""``umbel predict INPUT OUTPUT``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

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
def predict(
    questions: Annotated[
        Path, typer.Argument(help="JSONL: image (a name, a list of names or null) or video, and question.")
    ],
    answers: Annotated[Path, typer.Argument(help="JSONL to write; must not exist.")],
    adapter: AdapterOption = None,
    base: BaseOption = None,
    quantization: QuantizationOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one forward pass.")] = 16,
    most_tokens: MostTokensOption = 32,
    augment: AugmentOption = 1,
    tuning_steps: TuningStepsOption = 0,
    frames: FramesOption = FRAMES,
    directory: RunsOption = "runs",
) -> None:
    """Answer every line of a file. A run that was stopped goes on where it was; OUTPUT appears when it is whole."""
    chosen = backend(quantization)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mllm.inference.predict import Questions, predict_file

    asked = Questions.read(questions, frames)  # before anything heavy is loaded
    from mllm.inference import Answerer

    with err.status("loading the model"):
        subject = load_subject(adapter, base, chosen, directory)
        options: dict[str, Any] = {"most_tokens": most_tokens, "augment": augment, "tuning_steps": tuning_steps}
        answerer = Answerer(subject.model, subject.collator, **options)
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:
        bar = bars.add_task("answering", total=len(asked))
        identity = f"{subject.identity} {sorted((options | {'frames': frames}).items())}"
        count = predict_file(
            asked, answers, answerer, identity=identity, batch_size=batch_size,
            progress=lambda done: bars.update(bar, completed=done),
        )  # fmt: skip
    out.print(f"{count} answers in {answers}", markup=False, soft_wrap=True)
