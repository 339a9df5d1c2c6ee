"""The trainer: local steps of one client on a warm model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from client import interrupt
from client.batches import shuffled_batches, steps_for
from client.distill import Collate, DistillingCollator, OtherModel, PreviousAdapter, Teacher
from client.losses import example_losses
from client.rounding import Rounding, rounded
from strategies.client_round import ClientRound
from umbel.config import TrainConfig
from umbel.errors import ModelError

if TYPE_CHECKING:
    from client.private import PrivateSteps
    from mllm.lora import TunedModel
    from mllm.tasks.base import ExampleSet
    from mllm.tasks.collate import Collator
    from umbel.adapter import Vector
    from umbel.side import SideTerm

Parameters = dict[str, torch.nn.Parameter]
_FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What local training did.

    Attributes:
        steps: optimizer steps, empty Poisson batches included.
        seen: examples seen, repeats counted; under example-level DP the expected number, which is public.
        loss: mean per-example loss over the examples seen, in nats, with distillation and balance; None under
            example-level DP, because the loss is not covered by the guarantee.
    """

    steps: int
    seen: float
    loss: float | None


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
        client: ClientRound,
        *,
        seed: int,
        amount: int = 0,
        private: PrivateSteps | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        side: Mapping[str, SideTerm] | None = None,
    ) -> TrainResult:
        """Loads ``client.start`` and runs one round's local steps.

        Args:
            examples: the client's own.
            client: the strategy's client half: what to train and the hooks around each step.
            seed: fixes batches and dropout (never noise).
            amount: overrides ``train.amount`` when positive.
            private: example-level DP-SGD; its plan's sampler then draws the batches.
            span: where this round lies in the whole run, as shares of it; places the learning rate's schedule.
            side: corrections of frozen weights by module, which the model computes with and does not train.

        Raises:
            DataError: there are no examples.
            ModelError: the loss is not finite (without DP; under DP such an example contributes nothing).
        """
        steps = steps_for(self._config, len(examples), amount)
        self._tuned.load(client.start, side)
        collator = self._taught(client.start)
        with self._session(seed, client.trainable) as parameters, rounded(self._tuned) as rounding:
            step = _Step(parameters, self._config, client, steps, span, rounding)
            if private is not None:
                private.run(
                    self._tuned.model,
                    parameters,
                    collator,
                    examples,
                    steps,
                    step,
                    any_parameter=self._tuned.any_parameter,
                    balance=self._config.balance,
                )
                return TrainResult(steps=steps, seen=steps * private.expected, loss=None)
            seen, total = 0, 0.0
            for indices in shuffled_batches(len(examples), self._config.batch_size, steps, seed):
                total += self._accumulate(collator, examples, indices)
                if self._config.max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(parameters.values(), self._config.max_grad_norm)
                step()
                seen += len(indices)
            return TrainResult(steps=steps, seen=float(seen), loss=total / max(seen, 1))

    def _taught(self, start: Vector) -> Collate:
        """The collator, which adds a teacher's distributions to every batch where ``train.distill`` says so."""
        config = self._config
        if config.distill == "none":
            return self._collator
        teacher: Teacher = PreviousAdapter(self._tuned, start)
        if config.distill == "teacher":
            if self._collator.teacher is None:
                raise ModelError("train.distill is teacher, but the collator names none: make both with warm_model.")
            teacher = OtherModel(*self._collator.teacher())
        return DistillingCollator(self._collator, teacher, config.distill_weight, config.distill_temperature)

    def _accumulate(self, collator: Collate, examples: ExampleSet, indices: npt.NDArray[np.int64]) -> float:
        """Adds the batch's mean gradient to ``grad``; returns the sum of the per-example losses."""
        total = 0.0
        for start in range(0, len(indices), self._config.microbatch):
            chunk = indices[start : start + self._config.microbatch]
            batch = collator([examples[int(i)] for i in chunk])
            losses = example_losses(self._tuned.model, batch, self._config.balance)
            (losses.sum() / len(indices)).backward()  # type: ignore[no-untyped-call]
            total += float(losses.detach().sum())
        if not np.isfinite(total):
            raise ModelError("The training loss is not finite: lower train.learning-rate or look for a broken example.")
        return total

    @contextmanager
    def _session(self, seed: int, trainable: frozenset[str]) -> Iterator[Parameters]:
        """Training mode with only the wanted parameters requiring gradients; all is put back at the end."""
        every = self._tuned.parameters
        chosen = {name: p for name, p in every.items() if name in trainable}
        if not chosen:
            raise ModelError("No tensor of the adapter is trainable in this round: check lora.targets.")
        threads = torch.get_num_threads()
        torch.set_num_threads(self._config.threads)
        self._tuned.model.train()
        for name, parameter in every.items():
            parameter.requires_grad_(name in chosen)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield chosen
        finally:
            for parameter in every.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            self._tuned.model.eval()
            torch.set_num_threads(threads)


class _Step:
    """One optimizer step between the strategy's two hooks; gradients are cleared after it."""

    def __init__(
        self,
        parameters: Parameters,
        config: TrainConfig,
        client: ClientRound,
        steps: int,
        span: tuple[float, float],
        rounding: Rounding | None = None,
    ) -> None:
        self._rounding = rounding
        self._parameters = parameters
        self._client = client
        self._optimizer = _optimizer(parameters, config)
        self._config = config
        self._steps = steps
        self._span = span
        self._done = 0

    def __call__(self) -> None:
        interrupt.check()
        first, last = self._span
        rate = learning_rate(self._config, first + (last - first) * self._done / max(self._steps, 1))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._done += 1
        if self._rounding is not None:
            self._rounding.exact()
        if self._client.hooked:
            gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
            with _as_arrays(gradients) as found, _as_arrays(self._parameters) as values:
                self._client.gradient(found, values)
            self._optimizer.step()
            with _as_arrays(self._parameters) as values:
                self._client.after_step(values)
        else:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._rounding is not None:
            self._rounding.rounded()


@contextmanager
def _as_arrays(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """The tensors as arrays that a hook may change in place: themselves, or copies of a GPU's that are put back."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    yield arrays
    for name, array in arrays.items():
        target = tensors[name].detach()
        if target.data_ptr() != array.ctypes.data:
            target.copy_(torch.from_numpy(array))


def learning_rate(config: TrainConfig, done: float) -> float:
    """The learning rate when a share ``done`` (0 to 1) of the whole run is over."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2)


def _optimizer(parameters: Parameters, config: TrainConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters.values(), lr=rate, momentum=config.momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=decay, foreach=True)
