"""Summary: the headline figures of a run, computed once for the report, the model card and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.tracking import CLIENTS, Figures, Metrics, Privacy


@dataclass(frozen=True, slots=True)
class TypeRow:
    """Accuracy on one question type of the headline set, as fractions; None where it was not measured."""

    name: str
    count: int
    base: float | None
    federated: float | None
    central: float | None


@dataclass(frozen=True, slots=True)
class SetRow:
    """One evaluation set, before and after. Fractions; ``change`` is in percentage points."""

    name: str
    base: Figures | None
    federated: Figures | None
    central: Figures | None
    change: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Headline figures. Accuracies are fractions on the headline set, differences percentage points.

    A figure that the run did not measure is None: nothing is guessed.
    """

    headline: str
    base: float | None
    federated: float | None
    central: float | None
    gain: float | None
    """federated - base, in points."""
    gap: float | None
    """central - federated, in points: positive when central training is better."""
    forgotten: dict[str, float]
    """Points lost on each other set; negative when it improved."""
    sets: list[SetRow]
    types: list[TypeRow]
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    cohort: int
    survivors: int
    rejected: int
    missing: int
    privacy: Privacy | None
    """What was spent, as the last round says, else what the start promises."""


def points(after: float | None, before: float | None) -> float | None:
    """``after - before`` in percentage points; None when either was not measured."""
    return None if after is None or before is None else 100.0 * (after - before)


def _accuracy(sets: dict[str, Figures], name: str) -> float | None:
    return sets[name].accuracy if name in sets else None


def _share(sets: dict[str, Figures], name: str, question: str) -> float | None:
    correct, count = sets[name].by_type.get(question, (0, 0)) if name in sets else (0, 0)
    return correct / count if count else None


def _types(
    name: str, base: dict[str, Figures], after: dict[str, Figures], central: dict[str, Figures]
) -> list[TypeRow]:
    counts: dict[str, int] = {}
    for sets in (base, after, central):
        if name in sets:
            for question, (_, count) in sets[name].by_type.items():
                counts[question] = max(count, counts.get(question, 0))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [TypeRow(q, n, _share(base, name, q), _share(after, name, q), _share(central, name, q)) for q, n in ordered]


def summarize(metrics: Metrics) -> Summary:
    """The figures of ``metrics``; an empty run gives a Summary of Nones and zeros."""
    name = metrics.headline
    base = metrics.start.baseline if metrics.start else {}
    after = metrics.final
    central = metrics.central.evaluation if metrics.central else {}
    names = list(dict.fromkeys([*([name] if name else []), *base, *after]))
    sets = [
        SetRow(n, base.get(n), after.get(n), central.get(n), points(_accuracy(after, n), _accuracy(base, n)))
        for n in names
    ]
    rounds = metrics.rounds
    spent = next((line.privacy for line in reversed(rounds) if line.privacy), None)
    return Summary(
        headline=name,
        base=_accuracy(base, name),
        federated=_accuracy(after, name),
        central=_accuracy(central, name),
        gain=points(_accuracy(after, name), _accuracy(base, name)),
        gap=points(_accuracy(central, name), _accuracy(after, name)),
        # The clients' own held-out data are what was trained for, not what may be forgotten.
        forgotten={row.name: -row.change for row in sets if row.change is not None and row.name not in (name, CLIENTS)},
        sets=sets,
        types=_types(name, base, after, central),
        rounds=len(rounds),
        seconds=metrics.end.seconds if metrics.end else sum(line.seconds.get("total", 0.0) for line in rounds),
        bytes_up=sum(line.bytes_up for line in rounds),
        bytes_down=sum(line.bytes_down for line in rounds),
        cohort=sum(line.cohort for line in rounds),
        survivors=sum(line.survivors for line in rounds),
        rejected=sum(line.rejected for line in rounds),
        missing=sum(line.missing for line in rounds),
        privacy=_merge(metrics.start.privacy if metrics.start else None, spent),
    )


def _merge(promised: Privacy | None, spent: Privacy | None) -> Privacy | None:
    """The round's figures over the start's words: a round may state epsilon alone."""
    if spent is None or promised is None:
        return spent or promised
    given = {key: value for key, value in spent.model_dump().items() if value not in (None, "")}
    return Privacy.model_validate({**promised.model_dump(), **given})
