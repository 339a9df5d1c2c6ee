"""From a batch to the loss of each of its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mllm.loss import per_example_loss

if TYPE_CHECKING:
    from mllm.tasks.collate import Batch


def example_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Losses [n] float32 of a batch, each the mean over the example's own answer tokens, in nats."""
    device = next(model.parameters()).device
    placed = batch if device.type == "cpu" else batch.to(device)
    return per_example_loss(model(**placed.inputs, use_cache=False).logits, placed.labels)
