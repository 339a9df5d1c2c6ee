"""The remove-one test: the clipped sum of a real batch may move by at most C when any one example leaves.

Seconds, and it sees every silent failure that we know: rows taken for examples, a loss that is a mean over the batch,
a parameter that an engine does not know, a clipping norm other than the claimed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privacy.clipping.check import without_dropout
from privacy.clipping.engine import Forward, GradientEngine, Split
from umbel.errors import AuditFailure, PrivacyError
from umbel.rows import RowMap

TOLERANCE = 1e-6
"""Relative to C, for up to four examples: rounding of float32 sums. It grows with the number of addends, since each of
them is rounded, and differently beside other neighbours."""
_LOUD = 1e3
"""Every example with a gradient is far above C: shows a wrong clipping norm, and rows clipped one by one."""
_NEAR = (0.5, 1.0, 2.0)
"""Typical norms over C: shows examples that change each other's gradients, which clipping hides far above C."""


@dataclass(frozen=True)
class SensitivityReport:
    """How far the clipped sum moved, in L2.

    Attributes:
        clipping_norm: C, as claimed.
        moved: for each example, the largest move seen when it left: at the loss as it is and at losses scaled so that
            gradients lie a little below, about and far above C.
        worst: the largest of them.
    """

    clipping_norm: float
    moved: tuple[float, ...]
    worst: float

    @property
    def ratio(self) -> float:
        """``worst`` over C: at most 1 when the guarantee holds."""
        return self.worst / self.clipping_norm

    @property
    def holds(self) -> bool:
        """Whether no example moved the sum by more than C(1 + 1e-6 max(1, n / 4))."""
        return self.worst <= self.clipping_norm * (1 + TOLERANCE * max(1.0, len(self.moved) / 4))

    def require(self) -> None:
        """Raises AuditFailure unless the guarantee holds."""
        if not self.holds:
            raise AuditFailure(
                f"Removing example {self.moved.index(self.worst)} moves the clipped sum by {self.ratio:.6g} C where at "
                "most 1 C is claimed: use the book-keeping or loop engine and a loss per example."
            )


def sensitivity_check(
    engine: GradientEngine,
    forward: Forward,
    batch: Any,
    rows: Callable[[Any], RowMap | None],
    split: Split,
    clipping_norm: float,
    *,
    size: int,
    without: Split | None = None,
) -> SensitivityReport:
    """Removes each example in turn and measures how far the engine's clipped sum moves.

    The rest is measured twice: as one batch (``without``) and as single examples one after another (``split``): both
    are the same data set, so a sound engine stays within C of the whole either way.

    Args:
        engine: the engine under test; its sum must be empty, and is left empty.
        forward: from a batch to losses [n].
        batch: a real batch of ``size`` examples, at least one; several images in one example make the test sharper.
        rows: the row map of a batch, or None where the engine needs none.
        split: example i of a batch as a batch of one.
        clipping_norm: C as claimed (not read from the engine, which may be wrong).
        size: n.
        without: the batch without example i; left out, only single examples are used.

    Raises:
        PrivacyError: the batch is empty or the engine refuses.
    """
    if size < 1:
        raise PrivacyError("The sensitivity test got an empty batch: give it at least one example.")

    def total(part: Any, count: int, scale: float) -> dict[str, Tensor]:
        engine.accumulate(lambda b: forward(b) * scale, part, rows(part), count, split)
        return engine.take()

    moved = [0.0] * size
    with without_dropout(engine.model):
        norms = engine.accumulate(forward, batch, rows(batch), size, split).norms
        engine.take()
        positive = norms[(norms > 0) & torch.isfinite(norms)]
        for scale in _scales(positive, clipping_norm, size):
            whole = total(batch, size, scale)
            alone = [total(split(batch, i), 1, scale) for i in range(size)]
            for gone in range(size):
                rests = [_sum([one for i, one in enumerate(alone) if i != gone], whole)]
                if without is not None and size > 1:
                    rests.append(total(without(batch, gone), size - 1, scale))
                moved[gone] = max([moved[gone], *(_distance(whole, rest) for rest in rests)])
    return SensitivityReport(clipping_norm, tuple(moved), max(moved))


def _scales(norms: Tensor, clipping_norm: float, size: int) -> list[float]:
    """Factors of the loss to try, from the positive finite norms of its gradients."""
    if not len(norms):
        return [1.0]
    loud, typical = clipping_norm / float(norms.min()) * _LOUD, clipping_norm / float(norms.median())
    wanted = [1.0, loud, *(factor * typical for factor in (1 / size, *_NEAR))]
    return sorted({min(max(scale, 1e-12), 1e12) for scale in wanted})


def _sum(parts: list[dict[str, Tensor]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
    for part in parts:
        for name, value in part.items():
            result[name] += value.double()
    return result


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    squares = sum(float((value.double() - b[name].double()).square().sum()) for name, value in a.items())
    distance = float(squares**0.5)
    return distance if distance == distance else float("inf")
