"""The trainer: local steps of one client on a warm model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from client.batches import shuffled_batches, steps_for
from mllm.loss import per_example_loss
from umbel.config import TrainConfig
from umbel.errors import ModelError

if TYPE_CHECKING:
    from client.private import PrivateSteps
    from mllm.lora import TunedModel
    from mllm.tasks.base import ExampleSet
    from mllm.tasks.collate import Batch, Collator


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What local training did.

    Attributes:
        steps: optimizer steps, empty Poisson batches included.
        examples: examples seen, repeats counted.
        loss: mean per-example loss over the examples seen, in nats; 0 when none was seen.
        clipped: share of the examples whose gradient was clipped; 0 without example-level DP.
    """

    steps: int
    examples: int
    loss: float
    clipped: float = 0.0


class GradientHook(Protocol):
    """A client regulariser: may change the mean gradient before the optimizer's step (FedProx, SCAFFOLD)."""

    def __call__(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Adds to each parameter's ``grad`` in place."""


class Trainer:
    """Trains the adapter of a warm :class:`~mllm.lora.TunedModel` in place.

    The optimizer starts afresh each round. Loss is per example (mean over its own answer tokens), so a
    batch's gradient is the mean of its examples' gradients, whatever their lengths.
    """

    def __init__(self, tuned: TunedModel, collator: Collator, config: TrainConfig) -> None:
        self._tuned = tuned
        self._collator = collator
        self._config = config

    def train(
        self,
        examples: ExampleSet,
        *,
        seed: int,
        trainable: frozenset[str] | None = None,
        amount: int = 0,
        hook: GradientHook | None = None,
        private: PrivateSteps | None = None,
    ) -> TrainResult:
        """Runs one round's local steps.

        Args:
            examples: the client's own.
            seed: fixes batches and dropout (never noise).
            trainable: names of the tensors to train; None trains all.
            amount: overrides ``train.amount`` when positive.
            hook: a client regulariser.
            private: example-level DP-SGD; its plan's sampler then draws the batches.

        Raises:
            DataError: there are no examples.
            ModelError: the loss is not finite (without DP; under DP such an example contributes nothing).
        """
        config = self._config
        with self._session(seed, trainable) as parameters:
            optimizer = _optimizer(parameters, config)
            steps = steps_for(config, len(examples), amount)
            if private is not None:
                return private.run(self._tuned.model, parameters, optimizer, self._collator, examples, steps, hook)
            seen, total = 0, 0.0
            for indices in shuffled_batches(len(examples), config.batch_size, steps, seed):
                optimizer.zero_grad(set_to_none=True)
                total += self._accumulate(examples, indices)
                if hook is not None:
                    hook(parameters)
                if config.max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
                optimizer.step()
                seen += len(indices)
            return TrainResult(steps=steps, examples=seen, loss=total / max(seen, 1))

    def _accumulate(self, examples: ExampleSet, indices: npt.NDArray[np.int64]) -> float:
        """Adds the batch's mean gradient to ``grad``; returns the sum of the per-example losses."""
        total = 0.0
        for start in range(0, len(indices), self._config.microbatch):
            chunk = indices[start : start + self._config.microbatch]
            losses = example_losses(self._tuned.model, self._collator([examples[int(i)] for i in chunk]))
            (losses.sum() / len(indices)).backward()  # type: ignore[no-untyped-call]
            total += float(losses.detach().sum())
        if not np.isfinite(total):
            raise ModelError("The training loss is not finite: lower train.learning-rate or look for a broken example.")
        return total

    @contextmanager
    def _session(self, seed: int, trainable: frozenset[str] | None) -> Iterator[dict[str, torch.nn.Parameter]]:
        """Training mode with only the wanted parameters requiring gradients; all is put back at the end."""
        every = self._tuned.parameters
        chosen = {name: p for name, p in every.items() if trainable is None or name in trainable}
        if not chosen:
            raise ModelError(
                "No tensor of the adapter is trainable in this round: check the strategy and lora.targets."
            )
        threads = torch.get_num_threads()
        torch.set_num_threads(self._config.threads)
        torch.manual_seed(seed)
        self._tuned.model.train()
        for name, parameter in every.items():
            parameter.requires_grad_(name in chosen)
        try:
            yield chosen
        finally:
            for parameter in every.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            self._tuned.model.eval()
            torch.set_num_threads(threads)


def example_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Loss of each example of a batch: [n] float32, mean over the example's own answer tokens."""
    logits = model(**batch.inputs, use_cache=False).logits
    return per_example_loss(logits, batch.labels)


def _optimizer(parameters: dict[str, torch.nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters.values(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
    )
