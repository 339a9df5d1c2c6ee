"""Distillation: each example also learns what a teacher says about it (Hinton et al. 2015).

With the adapter as it was sent for a teacher this is learning without forgetting (Li and Hoiem 2016); a larger local
model may teach as well. The teacher is fixed while a client trains and sees one example at a time, so an example's loss
still depends on that example alone, and clipping per example stays exact. A private teacher would break that: it is a
published checkpoint or the released adapter, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mllm.tasks.collate import IGNORED, Batch
from umbel.errors import ModelError

if TYPE_CHECKING:
    from mllm.lora import TunedModel
    from mllm.tasks.collate import Collator
    from mllm.tasks.example import Example
    from umbel.adapter import Vector

Collate = Callable[[Sequence["Example"]], Batch]
"""From examples to a batch."""
Teacher = Callable[[Sequence["Example"], Batch], Tensor]
"""From examples and the student's batch of them to logits float32 [k, V] at the k labelled places, row by row."""


@dataclass(frozen=True, slots=True)
class SoftBatch(Batch):
    """A batch with a teacher's distributions.

    Attributes:
        soft: float32 [k, V], the teacher's logits at the k labelled places, row by row.
        weight: of the distillation in the loss, in (0, 1].
        temperature: of both distributions.
    """

    soft: Tensor
    weight: float
    temperature: float

    def to(self, device: torch.device | str) -> SoftBatch:
        """See Batch."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return SoftBatch(
            inputs,
            self.labels.to(device),
            self.images_per_example,
            self.size,
            self.soft.to(device),
            self.weight,
            self.temperature,
        )


class DistillingCollator:
    """Adds a teacher's distributions to every batch of another collator."""

    def __init__(self, inner: Collate, teacher: Teacher, weight: float, temperature: float) -> None:
        self._inner, self._teacher = inner, teacher
        self._weight, self._temperature = weight, temperature

    def __call__(self, examples: Sequence[Example]) -> SoftBatch:
        """See Collator."""
        batch = self._inner(examples)
        soft = self._teacher(examples, batch)
        return SoftBatch(
            batch.inputs,
            batch.labels,
            batch.images_per_example,
            batch.size,
            soft,
            self._weight,
            self._temperature,
        )


class PreviousAdapter:
    """The teacher that the student was when the round began: the same model with other factors for one pass."""

    def __init__(self, tuned: TunedModel, start: Vector) -> None:
        self._tuned = tuned
        views = tuned.spec.views(start)
        self._start = {
            name: torch.tensor(views[name], device=parameter.device) for name, parameter in tuned.parameters.items()
        }

    def __call__(self, examples: Sequence[Example], batch: Batch) -> Tensor:
        """See Teacher."""
        model, parameters = self._tuned.model, self._tuned.parameters
        held, was = {name: p.data for name, p in parameters.items()}, model.training
        model.eval()
        try:
            for name, parameter in parameters.items():
                parameter.data = self._start[name]
            return labelled_logits(model, batch)
        finally:
            for name, parameter in parameters.items():
                parameter.data = held[name]
            model.train(was)


class OtherModel:
    """A teacher with weights and a processor of its own, and the student's vocabulary."""

    def __init__(self, model: Any, collator: Collator) -> None:
        self._model, self._collator = model, collator

    def __call__(self, examples: Sequence[Example], batch: Batch) -> Tensor:
        """See Teacher.

        Raises:
            ModelError: the teacher reads other answer tokens in the same examples.
        """
        own = self._collator(examples)
        if not torch.equal(own.labels[own.labels != IGNORED], batch.labels[batch.labels != IGNORED]):
            raise ModelError(
                "The teacher cuts answers into other tokens than the model: choose one of the same family."
            )
        return labelled_logits(self._model, own)


def labelled_logits(model: Any, batch: Batch) -> Tensor:
    """float32 [k, V], without gradient: logits where the next token is labelled, row by row."""
    device = next(model.parameters()).device
    placed = batch if device.type == "cpu" else batch.to(device)
    with torch.no_grad():
        logits = model(**placed.inputs, use_cache=False).logits
    rows, steps = (placed.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    found: Tensor = logits[rows, steps].float()
    return found


def distilled_loss(logits: Tensor, batch: SoftBatch, hard: Tensor) -> Tensor:
    """(1 - w) hard + w T^2 KL(teacher || student at temperature T), each a mean over an example's own tokens, [n].

    Args:
        logits: [n, T, V] of the student.
        batch: with the teacher's logits.
        hard: [n], the usual loss.

    Raises:
        ModelError: teacher and student have vocabularies of different size.
    """
    rows, steps = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    student = logits[rows, steps].float() / batch.temperature
    if student.shape != batch.soft.shape:
        raise ModelError(
            f"The teacher gives logits of shape {tuple(batch.soft.shape)}, the model {tuple(student.shape)}: choose a "
            "teacher with the same vocabulary."
        )
    teacher = (batch.soft / batch.temperature).log_softmax(dim=-1)
    apart = (teacher.exp() * (teacher - student.log_softmax(dim=-1))).sum(dim=-1)
    total = torch.zeros_like(hard).index_add(0, rows, apart.to(hard.dtype))
    counts = torch.zeros_like(hard).index_add(0, rows, torch.ones_like(apart, dtype=hard.dtype))
    soft = total / counts.clamp(min=1) * batch.temperature**2
    return (1 - batch.weight) * hard + batch.weight * soft
