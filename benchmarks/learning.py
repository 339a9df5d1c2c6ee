"""What federated training gains over the base, and what it loses against central training, without privacy.

The demo's job without differential privacy, under Flower's simulation runtime, and in the same run the same LoRA on
the pooled private data for the same number of examples. Accuracies are fractions on all private test questions.

    python -m benchmarks.learning --json
"""

from __future__ import annotations

from benchmarks.output import finish, parser
from benchmarks.real_run import WITHOUT_PRIVACY, in_scratch, of_kind


def main() -> None:
    """Runs once and prints the figures."""
    arguments = parser("Federated against base and central.").parse_args()
    lines = in_scratch(WITHOUT_PRIVACY | {"evaluate.central": True})
    start, central, end = (of_kind(lines, kind) for kind in ("start", "central", "end"))
    colour = end["evaluation"]["private"]["by_type"].get("what colour", [0, 0])
    public = {
        "base": start["baseline"]["public"]["accuracy"],
        "federated": end["evaluation"]["public"]["accuracy"],
    }
    figures = {
        "base": start["baseline"]["private"]["accuracy"],
        "federated": end["evaluation"]["private"]["accuracy"],
        "central": central["evaluation"]["private"]["accuracy"],
        "seconds": end["seconds"],
        "what_colour": colour[0] / max(colour[1], 1),
        "public": public,
    }
    finish(figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
