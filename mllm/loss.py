"""One loss an example, so that no example's gradient depends on another."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from umbel.errors import ModelError

IGNORED = -100


def per_example_loss(
    logits: torch.Tensor, labels: torch.Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> torch.Tensor:
    """Cross-entropy of the next token, in nats, over each example's own labelled tokens.

    The batch-mean loss of transformers divides by the number of labelled tokens in the whole batch, so that
    one example changes the weight of all others; under a per-example bound that breaks the guarantee.

    Args:
        logits: [n, T, V], any floating dtype; position t predicts label t + 1.
        labels: int64 [n, T]; -100 is ignored, and so is the first position.
        reduction: ``mean`` over the example's labelled tokens, or their ``sum``.

    Returns:
        float32 [n] (float64 for float64 logits). An example without a labelled token gives 0 with a gradient of 0; an
        empty batch gives an empty tensor. A logit that is not finite gives a loss that is not finite in its own
        example only.

    Raises:
        ModelError: the shapes do not fit together or the reduction is unknown.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ModelError(
            f"Logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}, expected [n, T, V] and [n, T]: "
            "make both from the same batch."
        )
    if reduction not in ("mean", "sum"):
        raise ModelError(f"Reduction {reduction!r} is unknown: use 'mean' or 'sum'.")
    target = labels[:, 1:]
    rows, steps = (target != IGNORED).nonzero(as_tuple=True)
    # Only labelled positions are turned to float32: with a large vocabulary the rest would be most of the memory.
    chosen = logits[rows, steps]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    losses = functional.cross_entropy(chosen, target[rows, steps], reduction="none")
    total = torch.zeros(logits.shape[0], dtype=chosen.dtype, device=logits.device).index_add(0, rows, losses)
    if reduction == "sum":
        return total
    counts = torch.zeros_like(total).index_add(0, rows, torch.ones_like(losses))
    return total / counts.clamp(min=1)
