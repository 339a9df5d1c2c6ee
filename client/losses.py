"""From a batch to the loss of each of its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from client.distill import SoftBatch, distilled_loss
from mllm.loss import per_example_loss

if TYPE_CHECKING:
    from mllm.tasks.collate import Batch


def example_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Losses [n] float32 of a batch, each the mean over the example's own answer tokens, in nats.

    A batch that carries a teacher's distributions gives the mixture of :func:`client.distill.distilled_loss`.
    """
    device = next(model.parameters()).device
    placed = batch if device.type == "cpu" else batch.to(device)
    logits = model(**placed.inputs, use_cache=False).logits
    losses = per_example_loss(logits, placed.labels)
    return distilled_loss(logits, placed, losses) if isinstance(placed, SoftBatch) else losses
