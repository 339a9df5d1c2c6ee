"""``umbel privacy``: plan a guarantee before a run, read what was spent after it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from umbel.errors import LedgerError, PlanError

if TYPE_CHECKING:
    from privacy.ledger import Ledger

_Choice = TypeVar("_Choice", bound=StrEnum)
app = typer.Typer(name="privacy", help="Plan a privacy guarantee, or read what was spent.", no_args_is_help=True)


@app.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="Budget of the whole run.")] = 8.0,
    delta: Annotated[float, typer.Option(help="At most one over the number of examples or clients.")] = 1e-5,
    unit: Annotated[str, typer.Option(help="example or client")] = "example",
    examples: Annotated[int, typer.Option(help="Examples of one client (unit example).")] = 650,
    batch_size: Annotated[int, typer.Option(help="Expected examples a step (unit example).")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of all rounds together (unit example).")] = 160,
    steps_per_round: Annotated[int, typer.Option(help="Steps between uploads; 0 takes all.")] = 0,
    clients: Annotated[int, typer.Option(help="Population (unit client).")] = 1000,
    cohort_size: Annotated[int, typer.Option(help="Expected clients a round (unit client).")] = 50,
    rounds: Annotated[int, typer.Option(help="Rounds (unit client).")] = 100,
    relation: Annotated[str, typer.Option(help="add-remove or replace-one")] = "add-remove",
    sampler: Annotated[str, typer.Option(help="poisson, fixed-size, shuffled, full or cyclic")] = "poisson",
    place: Annotated[str, typer.Option(help="auto, step, update or coordinator")] = "auto",
    clipping_norm: Annotated[float, typer.Option(help="Largest norm of one contribution.")] = 1.0,
    bands: Annotated[int, typer.Option(help="Bands of correlated noise (sampler cyclic).")] = 8,
    noise_multiplier: Annotated[float, typer.Option(help="Fixed noise; 0 calibrates it.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Calibrates the noise multiplier for a budget and states the guarantee."""
    from privacy.plan import Mechanism, Place, PrivacyPlan, Relation, Sampler, Unit

    kind, how = _one(Unit, unit, "--unit"), _one(Sampler, sampler, "--sampler")
    by_example = kind is Unit.EXAMPLE
    if place == "auto":
        place = "step" if by_example else "coordinator"
    population, size = (examples, batch_size) if by_example else (clients, cohort_size)
    if population < 1 or size < 1:
        raise PlanError(f"{size} out of {population} cannot be drawn: both numbers must be at least 1.")
    wanted = PrivacyPlan(
        unit=kind,
        relation=_one(Relation, relation, "--relation"),
        sampler=how,
        sampling_rate=1.0 if how is Sampler.FULL and not by_example else size / population,
        steps=steps if by_example else rounds,
        clipping_norm=clipping_norm,
        noise_multiplier=noise_multiplier or 1.0,
        place=_one(Place, place, "--place"),
        delta=delta,
        epsilon_budget=epsilon,
        mechanism=Mechanism.BANDED if how is Sampler.CYCLIC else Mechanism.GAUSSIAN,
        population=population,
        steps_per_round=(steps_per_round or steps) if by_example else 1,
        bands=bands if how is Sampler.CYCLIC else 1,
    )
    if not noise_multiplier:
        wanted = wanted.calibrated()
    spent = wanted.epsilon()
    if as_json:
        body = wanted.record() | {"epsilon": spent, "noise_std": wanted.noise_std(), "statement": wanted.statement()}
        typer.echo(json.dumps(body))
    else:
        typer.echo(f"noise multiplier  {wanted.noise_multiplier:.4f}")
        typer.echo(f"noise std of sum  {wanted.noise_std():.4f}")
        typer.echo(f"epsilon           {spent:.4f} of {epsilon:g} after {wanted.steps} steps")
        typer.echo(wanted.statement())
    if spent > epsilon:
        raise PlanError(
            f"The noise multiplier {noise_multiplier:g} spends epsilon {spent:.2f}, more than the budget of {epsilon:g}"
            ": raise one of the two, or leave out --noise-multiplier."
        )


@app.command()
def spent(
    where: Annotated[Path, typer.Argument(help="A ledger file, or a folder with *.sqlite ledgers beneath.")],
    delta: Annotated[float, typer.Option(help="Delta at which epsilon is stated.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Verifies ledgers and states what each data set has spent."""
    from privacy.ledger import Ledger

    rows: list[dict[str, str | float | int | None]] = []
    for path in _ledgers(where):
        with Ledger.open(path, create=False) as ledger:
            rows += _rows(ledger, path, delta)
    if as_json:
        typer.echo(json.dumps({"delta": delta, "spent": rows}))
        return
    for row in rows:
        budget = "" if row["budget"] is None else f" of {row['budget']:g} at delta {row['budget_delta']:g}"
        typer.echo(
            f"{row['ledger']}: {row['dataset']} ({row['unit']}) epsilon {row['epsilon']:.4f} at delta {delta:g}{budget}"
            f", {row['relation']}, {row['steps']} steps in {row['events']} events"
        )
    if not rows:
        typer.echo("Nothing was spent.")


def _rows(ledger: Ledger, path: Path, delta: float) -> list[dict[str, str | float | int | None]]:
    rows: list[dict[str, str | float | int | None]] = []
    for dataset, unit in ledger.datasets():
        events = ledger.events(dataset=dataset, unit=unit)
        budget = ledger.budget(dataset=dataset, unit=unit)
        relations = sorted({event.relation.value for event in events})
        rows.append(
            {
                "ledger": path.name,
                "dataset": dataset,
                "unit": unit.value,
                "relation": relations[0] if len(relations) == 1 else "replace-one" if relations else "none",
                "epsilon": ledger.spent(delta, dataset=dataset, unit=unit),
                "budget": budget.epsilon if budget else None,
                "budget_delta": budget.delta if budget else None,
                "steps": sum(event.steps for event in events),
                "events": len(events),
            }
        )
    return rows


def _ledgers(where: Path) -> list[Path]:
    if where.is_dir():
        found = sorted(path for path in where.rglob("*.sqlite") if _is_ledger(path))
        if not found:
            raise LedgerError(f"There is no ledger beneath {where}: give a run's folder or a ledger file.")
        return found
    return [where]


def _is_ledger(path: Path) -> bool:
    """Whether the file says of itself that it is a ledger: SQLite's application id at byte 68."""
    from privacy.ledger.store import APPLICATION

    try:
        with path.open("rb") as stream:
            header = stream.read(72)
    except OSError:
        return False
    return header[68:72] == APPLICATION.to_bytes(4, "big")


def _one(kind: type[_Choice], value: str, option: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise PlanError(f"{option} {value!r} is unknown: expected one of {known}.") from None
