"""Aggregate: what a finished round reveals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privacy.secagg.parameters import SecAggParameters


@dataclass(frozen=True)
class Aggregate:
    """What a round reveals, and nothing more.

    Attributes:
        sum: float64, the sum of the survivors' clipped (and weighted) vectors.
        metrics: sums of the coordinates, by name ("weight" among them when weighted).
        survivors: ids whose vectors are in the sum, ascending.
        counts: clients that answered, by stage ("advertised", "shared", "masked", "confirmed", "unmasked").
        bytes: bytes received, by the same stages.
        late: messages that came after their stage was closed.
        parameters: of the round.
    """

    sum: npt.NDArray[np.float64] = field(repr=False)
    metrics: dict[str, float]
    survivors: tuple[int, ...]
    counts: dict[str, int]
    bytes: dict[str, int]
    late: int
    parameters: SecAggParameters = field(repr=False)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """The (weighted) mean of the survivors' clipped vectors; zeros if all weights are zero."""
        if not self.parameters.encoding.max_weight:
            return self.sum / len(self.survivors)
        total = self.metrics["weight"]
        return self.sum * (self.parameters.encoding.max_weight / total if total else 0.0)
