"""The AdapterStrategy seam: one federated LoRA method, client half and server half.

A round runs so: the server sends ``download(state, round, spec)``; the client loads it as ``received``, trains
the tensors that ``trainable`` names and sends ``upload(local, received)``, laid out by ``upload_spec``; the
server averages uploads (one weighted mean for ``linear`` methods) and calls ``step``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from umbel.adapter import AdapterSpec, Vector


@dataclass(frozen=True, slots=True)
class StrategyFacts:
    """What the planner must know about a method.

    Attributes:
        paper: source of the method.
        linear: the server half needs only the weighted mean of uploads, so secure aggregation works.
        exact: the aggregate equals the weighted average of the clients' products B A.
        private: noise on the uploads is not amplified by multiplying two noisy factors.
        heterogeneous_ranks: clients may train at different ranks.
        note: one sentence for the table.
    """

    paper: str
    linear: bool
    exact: bool
    private: bool
    heterogeneous_ranks: bool
    note: str


@dataclass(frozen=True, slots=True)
class Upload:
    """One client's upload, where individual uploads are visible (``linear`` is false)."""

    vector: Vector
    weight: float
    rank: int


@dataclass(frozen=True)
class StrategyState:
    """What the server half carries from round to round: arrays by name; checkpointed as safetensors.

    ``arrays["adapter"]`` is always the global adapter as the flat vector of the server's spec.
    """

    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def adapter(self) -> Vector:
        """The global adapter."""
        return self.arrays["adapter"]


class AdapterStrategy(ABC):
    """A federated LoRA method. Instances hold options only, never state."""

    name: ClassVar[str]
    facts: ClassVar[StrategyFacts]

    def initial(self, spec: AdapterSpec, adapter: Vector) -> StrategyState:
        """The state before round 1, from a freshly initialised adapter."""
        spec.check(adapter)
        return StrategyState({"adapter": adapter.copy()})

    def trainable(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """Names of the tensors that clients train in this round (1-based). Default: all."""
        return frozenset(spec.by_name)

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """Layout of the upload of a client that trains ``spec``. Default: the trainable tensors."""
        names = self.trainable(spec, round_number)
        return spec.select(names.__contains__)

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """The adapter that a client with ``spec`` starts from. Default: the global one."""
        return state.adapter

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """The client half: what leaves, in the layout of :meth:`upload_spec`. Default: the difference.

        Args:
            spec: the client's own spec.
            local: the client's adapter after training.
            received: the adapter it started from.
        """
        views, start = spec.views(local), spec.views(received)
        up = self.upload_spec(spec, round_number)
        return up.flatten({t.name: views[t.name] - start[t.name] for t in up})

    @abstractmethod
    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """The server half of a linear method.

        Args:
            spec: the server's spec.
            mean: the weighted mean of uploads, laid out by ``upload_spec(spec, round_number)``.
            state: the state before this round; it is not changed.
        """

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """The server half where uploads are visible one by one. Default: their weighted mean, then ``step``.

        Raises:
            StrategyError: no uploads.
        """
        from strategies.mean import weighted_mean

        return self.step(spec, weighted_mean(uploads), state, round_number)


def apply_mean(spec: AdapterSpec, up: AdapterSpec, mean: Vector, adapter: Vector, *, scale: float = 1.0) -> Vector:
    """The adapter plus ``scale`` times an averaged difference laid out by ``up``; untouched tensors stay."""
    result = adapter.copy()
    views, moved = spec.views(result), up.views(mean)
    for tensor in up:
        views[tensor.name] += np.float32(scale) * moved[tensor.name]
    return result
