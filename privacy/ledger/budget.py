"""What may be spent on one data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from umbel.errors import PlanError


@dataclass(frozen=True, slots=True)
class Budget:
    """Most epsilon that may ever be spent, at ``delta``.

    Raises:
        PlanError: epsilon not finite or not above 0, or delta not between 0 and 1.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise PlanError(f"A budget has epsilon {self.epsilon}: expected a finite number above 0, as 8.0.")
        if not 0 < self.delta < 1:
            raise PlanError(f"A budget has delta {self.delta}: expected above 0 and below 1, as 1e-5.")
