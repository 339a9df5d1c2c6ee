"""How many devices train as one batch."""

from __future__ import annotations

import math

_FEWEST_GROUPS = 4
_FEWEST_LANES = 8


def effective_lanes(lanes: int, cohort: int) -> int:
    """Lanes of a cohort: at most ``lanes``, and few enough that there is work for several actors.

    It depends on nothing but the two, never on the machine, because grouping decides the rounding of a result.
    """
    return 1 if lanes == 1 else min(lanes, max(_FEWEST_LANES, math.ceil(cohort / _FEWEST_GROUPS)))
