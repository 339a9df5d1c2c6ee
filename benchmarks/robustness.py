"""A fifth of the clients is hostile: accuracy with and without each defence.

easy-VQA, 15 clients of which 3 are hostile, Dirichlet 0.5, three rounds of FFA-LoRA without differential privacy, over
the in-memory grid; about 10 CPU minutes. Every finished run is a line in ``--results``, from which an interrupted
benchmark goes on. Hostile sites train like the others and lie before masking (simulations/attackers.py). Defences see
single updates, but for ``median of groups``: five random groups of three are summed securely and their sums compared.

    python -m benchmarks.robustness --json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cells import QUESTIONS, Cell, Results, federate, run_all
from benchmarks.output import finish, parser
from simulations.attackers import STRENGTH, Attack, hostile_app, hostile_nodes

CLIENTS = 15
SHARE = 0.2
OPTIONS: dict[str, Any] = {
    "model.quantization": "int8-weight-only",
    "task.alpha": 0.5,
    "federation.clients": CLIENTS,
    "federation.rounds": 3,
    "strategy.name": "ffa-lora",
    "strategy.corrupt": SHARE,
    "privacy.unit": "none",
    "secagg.enabled": False,
    "train.amount": 5,
    "train.batch-size": 16,
    "train.microbatch": 16,
    "train.learning-rate": 3e-2,
}
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "norm-bound": {"strategy.robust": "norm-bound"},
    "median": {"strategy.robust": "median"},
    "trimmed-mean": {"strategy.robust": "trimmed-mean"},
    "geometric-median": {"strategy.robust": "geometric-median"},
    "krum": {"strategy.robust": "krum"},
    "multi-krum": {"strategy.robust": "multi-krum"},
    "bulyan": {"strategy.robust": "bulyan"},
    "median of groups": {
        "strategy.robust": "median",
        "strategy.groups": 5,
        "strategy.corrupt": 0.4,
        "secagg.enabled": True,
    },
}
"""Bulyan withstands 3 of 15 and no more, which is why there are 15 clients."""


def cells() -> list[tuple[str, str, Cell]]:
    """Attack, defence and run; once without both, for comparison."""
    return [
        (attack, defence, Cell({"attack": attack, "defence": defence}, OPTIONS | options))
        for defence, options in DEFENCES.items()
        for attack in ("none", *STRENGTH)
        if attack != "none" or defence == "none"
    ]


def work(one: Cell) -> dict[str, Any]:
    """Runs one cell."""
    attack: Attack | None = one.names["attack"] if one.names["attack"] != "none" else None
    if attack is None:
        return federate(one.options, hostile_app((), "scale"))
    return federate(one.options, hostile_app(hostile_nodes(CLIENTS, SHARE, 0), attack))


def main() -> None:
    """Runs what is missing and prints the table."""
    options = parser("Robust rules against hostile clients.")
    options.add_argument("--results", type=Path, default=Path("runs/benchmark-robustness.jsonl"))
    options.add_argument("--limit", type=int, default=0, help="most runs now; 0 takes all")
    arguments = options.parse_args()
    results = Results(arguments.results)
    made = cells()
    run_all([one for _, _, one in made], results, work, arguments.limit)
    rows = [
        {"attack": attack, "defence": defence, "accuracy": found["accuracy"]}
        for attack, defence, one in made
        if (found := results.get(one)) is not None
    ]
    base = [found["base"] for _, _, one in made if (found := results.get(one)) is not None]
    strength = {str(attack): value for attack, value in STRENGTH.items()}
    figures = {"robust": rows, "base": base[0] if base else None, "questions": QUESTIONS, "strength": strength}
    if not arguments.json:
        show(rows)
    finish(figures, as_json=arguments.json)


def show(rows: list[dict[str, Any]]) -> None:
    """The table for people, on stderr."""
    from rich.console import Console
    from rich.table import Table

    attacks = ["none", *STRENGTH]
    made = Table("defence", *attacks)
    for defence in DEFENCES:
        found = {row["attack"]: f"{row['accuracy']:.1%}" for row in rows if row["defence"] == defence}
        made.add_row(defence, *(found.get(attack, "") for attack in attacks))
    Console(stderr=True).print(made)


if __name__ == "__main__":
    main()
