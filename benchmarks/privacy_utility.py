"""The price of privacy: accuracy on the private test questions without it, at epsilon 8 and at epsilon 2.

Three runs of the demo's job under Flower's simulation runtime, alike but for the guarantee.

    python -m benchmarks.privacy_utility --json
"""

from __future__ import annotations

from typing import Any

from benchmarks.output import finish, parser
from benchmarks.real_run import WITHOUT_PRIVACY, in_scratch, of_kind


def main() -> None:
    """Runs the three and prints the curve."""
    options = parser("Epsilon against accuracy.")
    options.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 2.0])
    arguments = options.parse_args()
    accuracy: dict[str, float] = {}
    base = 0.0
    cells: list[tuple[str, dict[str, Any]]] = [("none", dict(WITHOUT_PRIVACY))]
    cells += [(f"{epsilon:g}", {"privacy.epsilon": epsilon}) for epsilon in arguments.epsilon]
    for name, changes in cells:
        lines = in_scratch(changes | {"evaluate.central": False, "evaluate.every": 0})
        base = of_kind(lines, "start")["baseline"]["private"]["accuracy"]
        accuracy[name] = of_kind(lines, "end")["evaluation"]["private"]["accuracy"]
    finish({"base": base, "accuracy": accuracy}, as_json=arguments.json)


if __name__ == "__main__":
    main()
