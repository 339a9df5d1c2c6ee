"""The strategies by name."""

from __future__ import annotations

import difflib

from strategies.base import AdapterStrategy
from strategies.fedit import FedIT
from umbel.errors import StrategyError

STRATEGIES: dict[str, type[AdapterStrategy]] = {cls.name: cls for cls in (FedIT,)}


def make_strategy(name: str) -> AdapterStrategy:
    """The strategy called ``name``.

    Raises:
        StrategyError: the name is unknown.
    """
    if name not in STRATEGIES:
        close = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(STRATEGIES))}."
        raise StrategyError(f"Strategy {name!r} is unknown: {hint}")
    return STRATEGIES[name]()
