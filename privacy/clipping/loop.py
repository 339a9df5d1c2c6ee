"""The loop engine: one example at a time. The least memory, no row map, and the oracle of all tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privacy.clipping.claims import claim
from privacy.clipping.engine import Forward, GradientEngine, Split, clip_factors, full_precision, losses_of
from umbel.errors import PrivacyError
from umbel.rows import RowMap


class LoopEngine(GradientEngine):
    """Exact clipping by a microbatch of one.

    It refuses the same parameters as the book-keeping engine, so that a run may change engines freely.
    ``any_parameter`` lifts that: the gradient of a single example's loss is right for whatever is trained
    (convolutions of a projector, for instance), as long as nothing in the model remembers other examples.
    """

    def __init__(
        self,
        model: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        clipping_norm: float,
        *,
        any_parameter: bool = False,
    ) -> None:
        super().__init__(model, trainable, clipping_norm)
        if not any_parameter:
            claim(model, self.trainable)

    def _accumulate(
        self, forward: Forward, batch: Any, rows: RowMap | None, size: int, split: Split | None
    ) -> tuple[Tensor, Tensor]:
        if split is None:
            raise PrivacyError("The loop engine cannot take the batch apart: pass a split that gives one example.")
        norms, losses = [], []
        earlier, self._sum = self._sum, {}
        try:
            for i in range(size):
                norm, loss = self._one(forward, split(batch, i))
                norms.append(norm)
                losses.append(loss)
            mine = self._sum
        finally:  # a microbatch that fails half way adds nothing
            self._sum = earlier
        for name, value in mine.items():
            self._add(name, value)
        return torch.stack(norms), torch.stack(losses)

    def _one(self, forward: Forward, batch: Any) -> tuple[Tensor, Tensor]:
        self._clear()
        loss = losses_of(forward, batch, 1)
        with full_precision():
            if loss.requires_grad:
                loss.sum().backward()  # type: ignore[no-untyped-call]
            return self._clip(), loss.detach()[0].float()

    def _clip(self) -> Tensor:
        """Adds the clipped gradient that stands in ``grad``; returns its norm, float64."""
        grads = {name: p.grad.float() for name, p in self.trainable.items() if p.grad is not None}
        self._clear()
        parts = [torch.linalg.vector_norm(g).double() for g in grads.values()]
        norm = torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros((), dtype=torch.float64)
        factor = clip_factors(norm, self.clipping_norm)
        if float(factor) > 0:
            for name, g in grads.items():
                self._add(name, g.mul_(factor))
        return norm
