"""Example-level DP-SGD: the local steps of one client under a PrivacyPlan (Abadi et al. 2016, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from client.losses import example_losses
from mllm.rows import row_map
from privacy.clipping.engine import GradientEngine
from privacy.clipping.make import make_engine
from privacy.plan import PrivacyPlan
from privacy.sampling import IndexSampler
from umbel.adapter import Vector
from umbel.errors import ModelError
from umbel.rows import RowMap

if TYPE_CHECKING:
    from client.distill import Collate
    from mllm.tasks.base import ExampleSet
    from mllm.tasks.collate import Batch
    from mllm.tasks.example import Example

AddNoise = Callable[[Vector], None]
"""Adds the next step's noise to a clipped sum, in place."""


class PrivateSteps:
    """Clips per example, sums, adds noise and divides by the public expected batch size.

    Formal guarantee: each step releases a sum in which one example counts for at most ``plan.clipping_norm``, with
    the plan's noise; the guarantee of all steps is what ``plan.events`` books. Step size, regularisers and the
    optimizer only process what was released. An empty Poisson batch is a step like any other.

    Args:
        plan: of this client.
        engine: name of the per-example gradient engine.
        sampler: the plan's, over this client's examples.
        add_noise: the plan's mechanism.
        microbatch: most examples in one forward pass.
    """

    def __init__(
        self, plan: PrivacyPlan, *, engine: str, sampler: IndexSampler, add_noise: AddNoise, microbatch: int
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._sampler = sampler
        self._add_noise = add_noise
        self._microbatch = microbatch

    @property
    def expected(self) -> float:
        """The public expected batch size."""
        return self._sampler.expected

    @property
    def clipping_norm(self) -> float:
        """Largest L2 norm of one example's contribution to a sum."""
        return self._plan.clipping_norm

    @property
    def engine(self) -> str:
        """Name of the per-example gradient engine."""
        return self._engine

    @property
    def microbatch(self) -> int:
        """Most examples in one forward pass."""
        return self._microbatch

    def batches(self, steps: int) -> Iterator[npt.NDArray[np.int64]]:
        """The draws of ``steps`` steps, each made when it is asked for; some may be empty."""
        return self._sampler.batches(steps)

    def noised_mean(self, clipped: Vector) -> Vector:
        """The release of one step: noise on the clipped sum, then the public divisor; in place.

        Args:
            clipped: the sum over one draw, of the trainable tensors in the spec's order. Call once a draw.
        """
        self._add_noise(clipped)
        clipped /= np.float32(self._sampler.expected)
        return clipped

    def run(
        self,
        model: Any,
        parameters: dict[str, torch.nn.Parameter],
        collator: Collate,
        examples: ExampleSet,
        steps: int,
        step: Callable[[], None],
        *,
        any_parameter: bool = False,
        balance: float = 0.0,
    ) -> None:
        """Makes ``steps`` steps on ``parameters``, which must be exactly those that require gradients.

        Args:
            step: makes the optimizer's step from each parameter's ``grad`` and clears it.
            any_parameter: parameters act outside plain layers: only a microbatch of one knows their gradients.
            balance: share of the balance of experts, within each example.

        Raises:
            UnclaimedParameter: the engine does not know one of the parameters.
            ModelError, PrivacyError: as the engine's ``accumulate``.
        """
        kind = "loop-any" if any_parameter and self._engine in ("auto", "loop") else self._engine
        engine = make_engine(kind, model, parameters, self._plan.clipping_norm)
        for indices in self.batches(steps):
            chosen = [int(i) for i in indices]
            for start in range(0, len(chosen), self._microbatch):
                chunk = [examples[i] for i in chosen[start : start + self._microbatch]]
                self._accumulate(engine, model, collator, chunk, kind, balance)
            self._release(engine.take(), parameters)
            step()

    def _accumulate(
        self,
        engine: GradientEngine,
        model: Any,
        collator: Collate,
        chunk: Sequence[Example],
        kind: str,
        balance: float,
    ) -> None:
        batch = collator(chunk)
        engine.accumulate(
            lambda part: example_losses(model, part, balance),
            batch,
            None if kind.startswith("loop") else self._rows(model, batch),
            len(chunk),
            lambda _batch, i: collator([chunk[i]]),
        )

    def _rows(self, model: Any, batch: Batch) -> RowMap | None:
        """The row map; None where the engine may do without because the family is not known."""
        try:
            return row_map(model, batch.inputs, batch.images_per_example)
        except ModelError:
            if self._engine == "auto":
                return None
            raise

    def _release(self, clipped: dict[str, torch.Tensor], parameters: dict[str, torch.nn.Parameter]) -> None:
        """Noises the whole sum as one vector and leaves its mean in each parameter's ``grad``."""
        flat = np.concatenate([clipped[name].detach().cpu().numpy().ravel() for name in parameters])
        self.noised_mean(flat)
        start = 0
        for parameter in parameters.values():
            part = torch.from_numpy(flat[start : start + parameter.numel()]).view_as(parameter)
            parameter.grad = part.to(parameter.device, copy=True)
            start += parameter.numel()
