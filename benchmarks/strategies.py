"""Every federated LoRA method on skewed clients, without privacy and at epsilon 8 under secure aggregation.

easy-VQA, ten clients, Dirichlet 0.1, equal rounds and steps, three seeds; over the in-memory grid. About 50 CPU
minutes. Every finished run is a line in ``--results``, from which an interrupted benchmark goes on.

    python -m benchmarks.strategies --json
    python -m benchmarks.strategies --tune      # the rates below, on a seed of their own
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import QUESTIONS, Cell, Results, federate, mean_rows, refusal, run_all
from benchmarks.output import finish, parser

METHODS = (
    "fedit",
    "ffa-lora",
    "rolora",
    "fedsa-lora",
    "fedsvd",
    "flexlora",
    "fed-sb",
    "hetlora",
    "lora-fair",
    "flasc",
    "feddpa",
    "fedex-lora",
    "flora",
    "fedask",
)
SEEDS = (0, 1, 2)
TUNING_SEED = 100

COMMON: dict[str, Any] = {
    "model.quantization": "int8-weight-only",
    "task.alpha": 0.1,
    "federation.clients": 10,
    "federation.rounds": 6,
}
PLAIN: dict[str, Any] = {
    "privacy.unit": "none",
    "secagg.enabled": False,
    "train.amount": 6,
    "train.batch-size": 16,
    "train.microbatch": 16,
}
PRIVATE: dict[str, Any] = {
    "privacy.unit": "example",
    "privacy.epsilon": 8.0,
    "secagg.enabled": True,
    "train.amount": 2,
    "train.batch-size": 64,
}

FAMILY = {"ffa-lora": "one", "fedsvd": "orthonormal", "fed-sb": "core"}
"""Methods that train B alone want higher rates than those that train both factors, be it in turn; FedSVD's A has
orthonormal rows, longer than those of a fresh A, so that the same step of B moves the product further."""

GRID: dict[tuple[str, bool], tuple[float, ...]] = {
    ("both", False): (1e-3, 3e-3, 1e-2, 3e-2),
    ("one", False): (3e-3, 1e-2, 3e-2, 1e-1),
    ("core", False): (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("orthonormal", False): (3e-3, 1e-2, 3e-2),
    ("both", True): (1e-2, 3e-2, 8e-2, 1.6e-1),
    ("one", True): (4e-2, 8e-2, 1.6e-1, 3.2e-1),
    ("core", True): (1e-2, 3e-2, 8e-2, 2e-1, 5e-1),
    ("orthonormal", True): (1e-2, 2e-2, 4e-2, 8e-2),
}
"""Rates that were tried, with fedit, ffa-lora, fed-sb and fedsvd standing for their families, on a seed of its own."""

RATES: dict[tuple[str, bool], float] = {
    ("both", False): 1e-2,
    ("one", False): 3e-2,
    ("core", False): 1e-2,
    ("orthonormal", False): 3e-2,
    ("both", True): 8e-2,
    ("one", True): 1.6e-1,
    ("core", True): 3e-2,
    ("orthonormal", True): 2e-2,
}
"""The best of them; FedSVD's private rates from 0.01 to 0.08 lie within 0.3 points of each other. FedASK
freezes A under differential privacy, where its result equals FedSVD's, and takes that one's rate."""

_FIGURES = ("accuracy", "bytes_up", "bytes_down", "aggregate_error", "seconds")


def family(name: str, private: bool) -> str:
    """Which rates suit a method."""
    return "orthonormal" if name == "fedask" and private else FAMILY.get(name, "both")


def cell(name: str, private: bool, seed: int, rate: float | None = None) -> Cell:
    """The run of one method. Fed-SB gets rank 32: only r x r values of a layer travel."""
    chosen = RATES[family(name, private), private] if rate is None else rate
    options = COMMON | (PRIVATE if private else PLAIN)
    options = options | {"strategy.name": name, "run.seed": seed, "train.learning-rate": chosen}
    if name == "fed-sb":
        options |= {"lora.rank": 32, "lora.alpha": 64.0}
    return Cell({"strategy": name, "private": private, "seed": seed}, options)


def tune(results: Results, only: list[str], limit: int) -> dict[str, Any]:
    """Accuracy at every rate of :data:`GRID`."""
    stands = {"both": "fedit", "one": "ffa-lora", "core": "fed-sb", "orthonormal": "fedsvd"}
    tried = {
        (kind, private, rate): cell(stands[kind], private, TUNING_SEED, rate)
        for (kind, private), rates in GRID.items()
        for rate in rates
        if stands[kind] in only
    }
    run_all(list(tried.values()), results, lambda one: federate(one.options), limit)
    found: dict[str, dict[str, float]] = {}
    for (kind, private, rate), one in tried.items():
        got = results.get(one)
        if got is not None:
            found.setdefault(f"{kind}, {'private' if private else 'plain'}", {})[f"{rate:g}"] = got["accuracy"]
    return found


def table(results: Results, cells: dict[tuple[str, bool], list[Cell]]) -> list[dict[str, Any]]:
    """One row a method and mode, of those whose every seed has run."""
    rows = []
    for (name, private), seeds in cells.items():
        got = [found for one in seeds if (found := results.get(one)) is not None]
        if len(got) == len(seeds):
            row = {"strategy": name, "private": private, **dict(mean_rows(got, _FIGURES))}
            rows.append(row | {"accuracies": [one["accuracy"] for one in got], "rate": seeds[0].options[_RATE]})
    return rows


_RATE = "train.learning-rate"


def main() -> None:
    """Runs what is missing and prints the table."""
    options = parser("Federated LoRA methods against each other.")
    options.add_argument("--results", type=Path, default=Path("runs/benchmark-strategies.jsonl"))
    options.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="these methods")
    options.add_argument("--modes", nargs="+", choices=("plain", "private"), default=["plain", "private"])
    options.add_argument("--limit", type=int, default=0, help="most runs now; 0 takes all")
    options.add_argument("--tune", action="store_true", help="try the rates instead, of the families in --only")
    arguments = options.parse_args()
    results = Results(arguments.results)
    if arguments.tune:
        finish(tune(results, arguments.only, arguments.limit), as_json=arguments.json)
        return
    refused: dict[str, str] = {}
    cells: dict[tuple[str, bool], list[Cell]] = {}
    for name in arguments.only:
        for private in (mode == "private" for mode in arguments.modes):
            seeds = [cell(name, private, seed) for seed in SEEDS]
            reason = refusal(seeds[0].options)
            if reason:
                refused[f"{name}, {'private' if private else 'plain'}"] = reason
            else:
                cells[name, private] = seeds
    for who, reason in refused.items():
        print(f"{who}: {reason}", file=sys.stderr)
    # Seed by seed, so that an interrupted benchmark has something of every method.
    order = [seeds[number] for number in range(len(SEEDS)) for seeds in cells.values()]
    run_all(order, results, lambda one: federate(one.options), arguments.limit)
    rows = table(results, cells)
    base = [found["base"] for one in order if (found := results.get(one)) is not None]
    figures = {
        "table": rows,
        "base": sum(base) / len(base) if base else None,
        "questions": QUESTIONS,
        "seeds": list(SEEDS),
        "refused": refused,
    }
    if not arguments.json:
        show(rows)
    finish(figures, as_json=arguments.json)


def show(rows: list[dict[str, Any]]) -> None:
    """The table for people, on stderr."""
    from rich.console import Console
    from rich.table import Table

    made = Table("strategy", "private", "accuracy", "MB up", "MB down", "aggregate error", "seconds")
    for row in sorted(rows, key=lambda row: (row["private"], -row["accuracy"])):
        error = "personal" if row["aggregate_error"] is None else f"{row['aggregate_error']:.2g}"
        made.add_row(
            row["strategy"],
            "yes" if row["private"] else "no",
            f"{row['accuracy']:.1%}",
            f"{row['bytes_up'] / 1e6:.1f}",
            f"{row['bytes_down'] / 1e6:.1f}",
            error,
            f"{row['seconds']:.0f}",
        )
    Console(stderr=True).print(made)


if __name__ == "__main__":
    main()
