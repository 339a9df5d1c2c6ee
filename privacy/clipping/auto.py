"""Book-keeping where the batch has a row map, the loop where it has none: what ``engine = "auto"`` means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from privacy.clipping.bookkeeping import BookkeepingEngine
from privacy.clipping.engine import Forward, GradientEngine, Split
from privacy.clipping.loop import LoopEngine
from umbel.rows import RowMap


class AutoEngine(GradientEngine):
    """Chooses between the two exact engines for every microbatch; the sum is the same either way."""

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter], clipping_norm: float) -> None:
        super().__init__(model, trainable, clipping_norm)
        self._books = BookkeepingEngine(model, trainable, clipping_norm)
        self._loop = LoopEngine(model, trainable, clipping_norm)

    def _accumulate(
        self, forward: Forward, batch: Any, rows: RowMap | None, size: int, split: Split | None
    ) -> tuple[Tensor, Tensor]:
        engine: GradientEngine = self._books if rows is not None else self._loop
        seen = engine.accumulate(forward, batch, rows, size, split)
        for name, value in engine.take().items():
            self._add(name, value)
        return seen.norms, seen.losses
