"""``umbel audit``: what one example moves, and what a run leaks, beside what is claimed."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.audit_run import Audited, clients_through_the_coordinator, examples_through_training
from umbel.cli.audit_subject import TINY
from umbel.cli.console import err, out
from umbel.errors import ModelError, PrivacyError

if TYPE_CHECKING:
    from privacy.audit import OneRunReport, SensitivityReport
    from privacy.clipping import GradientEngine
    from umbel.cli.audit_subject import Subject

app = typer.Typer(add_completion=False)


class Kind(StrEnum):
    """Where canaries enter, and so how much of the code they pass."""

    GRADIENTS = "gradients"
    EXAMPLES = "examples"
    CLIENTS = "clients"


@app.command()
def audit(
    model: Annotated[
        str | None, typer.Option(help="Model to audit: as model.name, or tiny:FAMILY for a tiny random one.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="auto, bookkeeping, loop, opacus or opacus-ghost.")] = None,
    claim: Annotated[
        float, typer.Option(min=0, help="Epsilon claimed for the audited run; 0 takes what its accounting gives.")
    ] = 0.0,
    delta: Annotated[float, typer.Option(help="Where epsilons are stated.")] = 1e-5,
    noise_multiplier: Annotated[float, typer.Option(help="Of the audited run.")] = 2.0,
    sampling_rate: Annotated[float, typer.Option(help="Of the audited run, in (0, 1].")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Of the audited run.")] = 4,
    canaries: Annotated[int, typer.Option(min=8, help="Canaries; a quarter of them is guessed.")] = 1000,
    kind: Annotated[
        Kind, typer.Option(help="Canaries: gradients in the engine, examples in training, or whole clients.")
    ] = Kind.GRADIENTS,
    examples: Annotated[int, typer.Option(min=2, help="Real examples in the batch.")] = 4,
    options: Annotated[
        list[str] | None, typer.Option("-c", "--config", metavar="KEY=VALUE", help="Options, as umbel run takes them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Remove one example at a time and measure the move; then run with canaries and bound what leaks.

    Leaves with code 55 when more is shown than is claimed. A low bound proves nothing.
    """
    from privacy.clipping import make_engine
    from umbel.cli.audit_subject import subject_of

    if not 0 < delta < 1:
        raise PrivacyError(f"Delta {delta} is no probability of failure: give a number between 0 and 1, such as 1e-5.")
    config = _config(options or [])
    if engine is not None:
        config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"engine": engine})})
    run = Audited(noise_multiplier, sampling_rate, steps, claim, delta, canaries)
    clipping_norm = config.privacy.clipping_norm
    if kind is Kind.CLIENTS:
        with err.status("running cohorts with canary clients"):
            shown = clients_through_the_coordinator(config, run)
        _report(None, shown, as_json)
        shown.require()
        return
    name = model or config.model.reference
    if kind is Kind.EXAMPLES and name.startswith(TINY):
        raise ModelError(f"Canary examples need a task's images and words, which {name} lacks: leave out --model.")
    subject = subject_of(name, config, examples)
    built = make_engine(config.privacy.engine, subject.model, subject.trainable, clipping_norm)
    moved = _sensitivity(built, subject, clipping_norm)
    if kind is Kind.EXAMPLES:
        with err.status("training on canaries"):
            shown = examples_through_training(config, name, examples, run)
    else:
        shown = _one_run(built, subject, clipping_norm, run)
    _report(moved, shown, as_json, engine=config.privacy.engine, clipping_norm=clipping_norm)
    moved.require()
    shown.require()


def _report(
    moved: SensitivityReport | None,
    shown: OneRunReport,
    as_json: bool,
    *,
    engine: str = "",
    clipping_norm: float = 0.0,
) -> None:
    if as_json:
        figures: dict[str, Any] = {"run": asdict(shown)}
        if moved is not None:
            figures["sensitivity"] = {**asdict(moved), "ratio": moved.ratio}
        out.print(json.dumps(figures), soft_wrap=True)
        return
    if moved is not None:
        out.print(f"engine            {engine}", markup=False)
        out.print(
            f"one example moves {moved.ratio:.6f} C, claimed at most 1 C (C = {clipping_norm:g}, "
            f"{len(moved.moved)} examples)",
            markup=False,
            soft_wrap=True,
        )
    out.print(
        f"empirical epsilon at least {shown.epsilon:.2f}, claimed {shown.claimed:.2f} at delta {shown.delta:g} "
        f"({shown.correct} of {shown.guesses} guesses right on {shown.total} canaries, "
        f"confidence {1 - shown.level:.0%})",
        markup=False,
        soft_wrap=True,
    )


def _config(options: list[str]) -> Any:
    from pathlib import Path

    from umbel.cli.options import app_options, find_app, parse_overrides
    from umbel.config import RunConfig

    return RunConfig.from_flat({**app_options(find_app(Path.cwd())), **parse_overrides(options)})


def _sensitivity(engine: GradientEngine, subject: Subject, clipping_norm: float) -> SensitivityReport:
    from privacy.audit import sensitivity_check

    with err.status("removing one example at a time"):
        return sensitivity_check(
            engine,
            subject.forward,
            subject.batch,
            subject.rows,
            subject.split,
            clipping_norm,
            size=subject.size,
            without=subject.without,
        )


def _one_run(engine: GradientEngine, subject: Subject, clipping_norm: float, run: Audited) -> OneRunReport:
    """A small run of DP-SGD on the real batch, with canaries among its examples, and what it shows."""
    from privacy.audit import GradientCanaries, canary_scores, coins, gaussian_release

    def real() -> None:
        engine.accumulate(subject.forward, subject.batch, subject.rows(subject.batch), subject.size, subject.split)

    with err.status("running DP-SGD with canaries"):
        made = GradientCanaries.on(engine, run.canaries, clipping_norm)
        members = coins(run.canaries)
        scores = canary_scores(
            engine,
            made,
            members,
            gaussian_release(run.noise_multiplier, clipping_norm),
            clipping_norm=clipping_norm,
            noise_multiplier=run.noise_multiplier,
            sampling_rate=run.sampling_rate,
            steps=run.steps,
            real=[real],
        )
        return run.judged(scores, members)
