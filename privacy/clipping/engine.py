"""The interface of the clipping engines, and the one place that turns norms into clipping factors.

Formal guarantee (add/remove one example): let ``forward`` be such that the i-th loss depends on example i alone, and
C the clipping norm. Then the sum that ``take`` returns is a sum of one vector an example, each with norm at most C and
each a function of that example (and of the parameters) alone. So removing one example moves it by at most C, replacing
one by at most 2 C. The noise, the sampling and the division by the expected batch size are the caller's.

=================================  =======================================================================
example's gradient                 its contribution
=================================  =======================================================================
norm 0                             0
norm at most C                     the gradient itself
norm above C                       the gradient times C / norm, rounded towards zero
infinite or NaN anywhere           0, and counted in ``Clipped.nonfinite``; other examples are untouched
no gradient (text only, no image)  0 for those parameters
empty batch                        0; ``accumulate`` does not call ``forward``
=================================  =======================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from privacy.clipping.claims import check_batch_norm, check_listed, check_norm
from umbel.errors import PrivacyError
from umbel.rows import RowMap

Forward = Callable[[Any], Tensor]
"""From a batch to the losses [n] of its examples; the i-th must depend on example i alone."""
Split = Callable[[Any, int], Any]
"""From a batch and i to a batch that holds example i alone, padded as it was in the batch or not at all."""
Relation = Literal["add-remove", "replace-one"]

# Factors are taken this much smaller so that rounding in float32 cannot carry a clipped norm above C.
_TOWARDS_ZERO = 1.0 - 2.0**-21


@dataclass(frozen=True, eq=False)
class Clipped:
    """What one ``accumulate`` saw. Not private: for tests, audits and local logs only.

    Attributes:
        norms: float32 [n], norms of the per-example gradients before clipping; inf or NaN where not finite.
        losses: float32 [n].
        clipped_fraction: share of examples with a norm above C or not finite; 0 for an empty batch.
        nonfinite: number of examples whose gradient was not finite and which contribute nothing.
    """

    norms: Tensor
    losses: Tensor
    clipped_fraction: float
    nonfinite: int = 0


def clip_factors(norms: Tensor, clipping_norm: float) -> Tensor:
    """Factors min(1, C / norm) of per-example gradients (Abadi et al. 2016, algorithm 1).

    Args:
        norms: [n], any floating dtype; 0 gives 1; inf and NaN give 0.
        clipping_norm: C, positive.

    Returns:
        float32 [n]; a factor below 1 is rounded towards zero by 5e-7 of itself.
    """
    wide = norms.double()
    factors = torch.where(wide > clipping_norm, clipping_norm / wide * _TOWARDS_ZERO, torch.ones_like(wide))
    return torch.where(torch.isfinite(wide), factors, torch.zeros_like(wide)).float()


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 arithmetic inside the block: no autocast, no TF32.

    Autocast would sum the clipped gradients in bfloat16, and TF32 keeps ten bits: both carry a clipped norm above C.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class GradientEngine(ABC):
    """Sums clipped per-example gradients over the microbatches of a step.

    Every instance belongs to one model and one list of trainable parameters, and is used from one thread. ``grad`` of
    the trainable parameters is overwritten and left at None.

    Raises:
        UnclaimedParameter: see :func:`privacy.clipping.claims.claim`.
        PrivacyError: the clipping norm is not positive and finite, or a parameter is frozen or not float32.
    """

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter], clipping_norm: float) -> None:
        self.model = model
        self.trainable = dict(trainable)
        self.clipping_norm = check_norm(clipping_norm)
        check_listed(model, self.trainable)
        self._sum: dict[str, Tensor] = {}

    def accumulate(
        self, forward: Forward, batch: Any, rows: RowMap | None, size: int, split: Split | None = None
    ) -> Clipped:
        """Adds the sum of the clipped gradients of one microbatch to the step's sum.

        Args:
            forward: from the batch to losses [n].
            batch: what ``forward`` takes.
            rows: who owns the rows of each layer; the book-keeping engine needs it, the loop does not.
            size: n, number of examples; 0 adds nothing.
            split: example i as a batch of one; the loop needs it.

        Raises:
            PrivacyError: losses are not [n]; ``rows`` or ``split`` is missing where needed; examples are coupled.
            ModelError: ``rows`` does not know a layer.
            UnclaimedParameter: a parameter acts outside the layer that claimed it. Nothing was added in any of these.
        """
        if size < 0 or (rows is not None and rows.size != size):
            raise PrivacyError(
                f"A batch of {size} examples came with a row map of {rows.size if rows else None}: make both from the "
                "same microbatch."
            )
        if size == 0:
            empty = torch.zeros(0)
            return Clipped(empty, empty, 0.0)
        check_batch_norm(self.model)
        with torch.enable_grad():
            norms, losses = self._accumulate(forward, batch, rows, size, split)
        finite = torch.isfinite(norms)
        over = ~finite | (norms > self.clipping_norm)
        return Clipped(norms.float(), losses, float(over.float().mean()), int((~finite).sum()))

    @abstractmethod
    def _accumulate(
        self, forward: Forward, batch: Any, rows: RowMap | None, size: int, split: Split | None
    ) -> tuple[Tensor, Tensor]:
        """Adds to ``self._sum`` by :meth:`_add` and returns norms [n] and losses float32 [n]."""

    def take(self) -> dict[str, Tensor]:
        """The sum of clipped gradients since the last call, float32 by name, zeros where nothing was added; resets."""
        taken = {
            name: self._sum.get(name, torch.zeros_like(p, dtype=torch.float32, requires_grad=False))
            for name, p in self.trainable.items()
        }
        self._sum = {}
        return taken

    def sensitivity(self, relation: Relation) -> float:
        """How far the sum moves, in L2, between neighbouring data sets: C, or 2 C for replace-one."""
        return self.clipping_norm * (2.0 if relation == "replace-one" else 1.0)

    def _add(self, name: str, value: Tensor) -> None:
        """Adds a float32 tensor of the parameter's shape to the step's sum."""
        held = self._sum.get(name)
        if held is None:
            self._sum[name] = value.detach().clone()
        else:
            held.add_(value.detach())

    def _clear(self) -> None:
        for p in self.trainable.values():
            p.grad = None


def losses_of(forward: Forward, batch: Any, size: int) -> Tensor:
    """Calls ``forward`` and checks what comes back.

    Returns:
        The losses [n], still attached to the graph.

    Raises:
        PrivacyError: not a tensor of shape [n] of a floating dtype.
    """
    losses = forward(batch)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (size,) or not losses.is_floating_point():
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise PrivacyError(
            f"The loss of a batch of {size} examples came as {got}, expected one floating number an example: a mean "
            "over the batch couples the examples."
        )
    return losses
