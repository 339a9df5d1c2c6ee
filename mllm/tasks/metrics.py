"""Accuracy and loss of a model on a set of examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mllm.loss import per_example_loss
from mllm.tasks.base import ExampleSet
from mllm.tasks.collate import IGNORED, Collator
from mllm.tasks.example import question_type
from umbel.errors import DataError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        accuracy: the share of examples whose whole answer, its end included, is predicted; 0 to 1.
        loss: mean over examples of the mean cross-entropy of the answer's tokens, in nats.
        count: examples seen.
        by_type: (correct, count) by question type, in the order of the types' names.
    """

    accuracy: float
    loss: float
    count: int
    by_type: dict[str, tuple[int, int]] = field(default_factory=dict)


def evaluate(
    model: Any, collator: Collator, examples: ExampleSet, *, batch_size: int, limit: int = 0, seed: int = 0
) -> Evaluation:
    """Exact-match accuracy in one forward pass a batch.

    Under teacher forcing every answer token and the end-of-sequence token must be the arg max. That is
    equivalent to greedy generation producing exactly the answer: by induction, greedy decoding that has been
    right so far has the same prefix as teacher forcing. (Equal up to rounding: two logits that differ by less
    than the model's own numerical noise may be ordered differently.)

    Args:
        model: takes ``model(**inputs)`` and returns ``logits`` [n, T, V]. It is in evaluation mode during the
            call and in its former mode afterwards.
        batch_size: examples in one forward pass.
        limit: at most so many examples, a subset drawn with ``seed`` (the same one at each call); 0 for all.

    Raises:
        DataError: no examples, or an image cannot be read.

    A row with logits that are not finite counts as wrong, and ``loss`` is then not finite.
    """
    total = len(examples)
    if total == 0:
        raise DataError("An evaluation set is empty: give it at least one example.")
    if batch_size < 1 or limit < 0:
        raise DataError(f"An evaluation with batch size {batch_size} and limit {limit} is impossible: raise them.")
    indices = np.arange(total)
    if 0 < limit < total:
        indices = np.sort(np.random.default_rng(seed).choice(total, size=limit, replace=False))
    device = next(model.parameters()).device
    losses: list[torch.Tensor] = []
    by_type: dict[str, tuple[int, int]] = {}
    was_training = bool(model.training)
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(indices), batch_size):
                chosen = [examples[int(i)] for i in indices[start : start + batch_size]]
                batch = collator(chosen).to(device)
                logits = model(**batch.inputs).logits
                losses.append(per_example_loss(logits, batch.labels).double().cpu())
                for example, right in zip(chosen, exact_match(logits, batch.labels).tolist(), strict=True):
                    correct, count = by_type.get(kind := question_type(example), (0, 0))
                    by_type[kind] = (correct + int(right), count + 1)
    finally:
        model.train(was_training)
    correct = sum(right for right, _ in by_type.values())
    return Evaluation(
        accuracy=correct / len(indices),
        loss=float(torch.cat(losses).mean()),
        count=len(indices),
        by_type=dict(sorted(by_type.items())),
    )


def exact_match(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """bool [n]: every labelled token of the row is the arg max of the position before it.

    Args:
        logits: [n, T, V].
        labels: int64 [n, T], :data:`IGNORED` where nothing is asked. A row without labels counts as wrong,
            and so does one with logits that are not finite at an asked position.
    """
    predicted, wanted = logits[:, :-1], labels[:, 1:]
    asked = wanted != IGNORED
    right = (predicted.argmax(dim=-1) == wanted) & predicted.isfinite().all(dim=-1)
    return (right | ~asked).all(dim=1) & asked.any(dim=1)
