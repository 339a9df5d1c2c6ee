"""From a batch to the loss of each of its examples."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from client.distill import SoftBatch, distilled_loss
from mllm.balance import Routing, balance_losses, recorded_routing
from mllm.loss import per_example_loss

if TYPE_CHECKING:
    from mllm.tasks.collate import Batch


def example_losses(model: Any, batch: Batch, balance: float = 0.0) -> torch.Tensor:
    """Losses [n] float32 of a batch, each the mean over the example's own answer tokens, in nats.

    A batch that carries a teacher's distributions gives the mixture of :func:`client.distill.distilled_loss`. Each loss
    depends on its own example alone.

    Args:
        model: computes with the adapter that is in it.
        batch: of the model's collator.
        balance: share of the balance of experts (:mod:`mllm.balance`) that is added; a model without experts has none.
    """
    device = next(model.parameters()).device
    placed = batch if device.type == "cpu" else batch.to(device)
    recorded: AbstractContextManager[list[Routing]] = recorded_routing(model) if balance else nullcontext([])
    with recorded as routing:
        logits = model(**placed.inputs, use_cache=False).logits
        losses = per_example_loss(logits, placed.labels)
        if isinstance(placed, SoftBatch):
            losses = distilled_loss(logits, placed, losses)
        if routing:
            losses = losses + balance * balance_losses(routing, placed.inputs["attention_mask"])
    return losses
