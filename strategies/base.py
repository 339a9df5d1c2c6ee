"""The AdapterStrategy seam: one federated LoRA method, client half and server half.

A round runs so: the server sends ``download(state, round, spec)``; the client loads it as ``received``, trains
the tensors that ``trainable`` names and sends ``upload(local, received)``, laid out by ``upload_spec``; the
server averages uploads (one weighted mean for ``linear`` methods) and calls ``step``.

Some methods need more, and everything more has a default that does nothing:

* ``extras``: arrays sent down beside the adapter (side terms, control variates, a sketch's basis);
* ``personal``, ``keep``, ``restore``: what stays at the client from round to round and never travels;
* ``begin``: the client half as one object, with the hooks that the trainer calls at every step;
* ``passes``: a method of two passes asks each client for a second upload after ``between``, without new training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from strategies.client_round import ClientRound
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError
from umbel.side import SideTerm, read_side

Arrays = Mapping[str, npt.NDArray[np.float32]]
"""Named float32 arrays."""


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
        fixed_basis: a coordinate of the upload means the same in every round, so that momentum, control
            variates and late (asynchronous) updates make sense.
        personal: part of the adapter stays at each client; the global adapter alone is not the model.
        up: what goes up for each layer (A is r x in, B is out x r).
        down: what goes down for each layer.
    """

    paper: str
    linear: bool
    exact: bool
    private: bool
    heterogeneous_ranks: bool
    note: str
    fixed_basis: bool = True
    personal: bool = False
    up: str = "A, B"
    down: str = "A, B"


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

    def __post_init__(self) -> None:
        # safetensors writes memory as it lies: a transposed or strided array would come back scrambled.
        plain = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in self.arrays.items()}
        object.__setattr__(self, "arrays", plain)

    @property
    def adapter(self) -> Vector:
        """The global adapter."""
        return self.arrays["adapter"]


class AdapterStrategy(ABC):
    """A federated LoRA method. Instances hold options only, never state."""

    name: str
    facts: StrategyFacts
    passes: int = 1
    """Uploads that a client sends for one training; 2 for a two-pass sketch."""

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
        """The adapter that a client with ``spec`` starts from. Default: the global one.

        Raises:
            StrategyError: the client's rank differs from the server's and the method cannot bridge that.
        """
        if state.adapter.size != spec.size:
            raise StrategyError(
                f"Strategy {self.name!r} needs the same LoRA rank at every client: choose one that allows mixed "
                "ranks (`umbel strategies` lists them), or one rank for all."
            )
        return state.adapter

    def extras(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """Arrays that go down beside the adapter in this round (or before the next pass). Default: side terms."""
        return {name: array for name, array in state.arrays.items() if name.startswith("side.")}

    def side(self, arrays: Arrays) -> dict[str, SideTerm]:
        """The corrections of frozen weights, by module, in ``state.arrays`` or ``extras``; mostly none.

        Whoever evaluates, trains or exports must add them: see :class:`umbel.side.SideTerm`.
        """
        return read_side(arrays)

    def personal(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """Names of tensors that stay at the client (wholly or in part) and never travel. Default: none."""
        return frozenset()

    def keep(self, spec: AdapterSpec, local: Vector, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """What the site stores after training. Default: copies of the personal tensors."""
        views = spec.views(local)
        return {name: views[name].copy() for name in sorted(self.personal(spec, round_number))}

    def restore(self, spec: AdapterSpec, received: Vector, kept: Arrays, round_number: int) -> Vector:
        """The adapter to train: the received one with what the site kept put back; a new vector.

        Args:
            kept: what :meth:`keep` gave after this client's last round; empty on its first. Arrays that do not
                fit (the rank was changed) are ignored, the received values then stand.
        """
        start = received.copy()
        views = spec.views(start)
        for name in self.personal(spec, round_number):
            if name in kept and kept[name].shape == views[name].shape:
                views[name][...] = kept[name]
        return start

    def begin(
        self,
        spec: AdapterSpec,
        received: Vector,
        round_number: int,
        extras: Arrays | None = None,
        kept: Arrays | None = None,
    ) -> ClientRound:
        """The client half of one round as an object; see :class:`strategies.client_round.ClientRound`."""
        start = self.restore(spec, received, kept or {}, round_number)
        return ClientRound(self, spec, start, round_number)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """The client half: what leaves, in the layout of :meth:`upload_spec`. Default: the difference.

        Args:
            spec: the client's own spec.
            local: the client's adapter after training.
            received: the adapter it started from.
        """
        up = self.upload_spec(spec, round_number)
        if up is spec:
            spec.check_length(local)
            spec.check_length(received)
            difference: Vector = np.subtract(local, received)
            return difference
        views, start = spec.views(local), spec.views(received)
        return up.flatten({t.name: views[t.name] - start[t.name] for t in up})

    @abstractmethod
    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """The server half of a linear method.

        Args:
            spec: the server's spec.
            mean: the weighted mean of uploads, laid out by ``upload_spec(spec, round_number)``.
            state: the state before this round; it is not changed.

        Returns:
            A new state. Without any change (a mean of zeros) the product of the factors stays the same.
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

    def pass_spec(self, spec: AdapterSpec, round_number: int, pass_number: int) -> AdapterSpec:
        """Layout of the upload of one pass (1-based); pass 1 is :meth:`upload_spec`."""
        return self.upload_spec(spec, round_number)

    def between(
        self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int, pass_number: int
    ) -> StrategyState:
        """The server's work after pass ``pass_number``, before the last: its state then holds the next extras."""
        raise StrategyError(f"Strategy {self.name!r} has a single pass: call step, not between.")

    def upload_pass(
        self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int, pass_number: int, extras: Arrays
    ) -> Vector:
        """The client's upload of a later pass, from the same ``local`` and ``received`` and the new extras."""
        raise StrategyError(f"Strategy {self.name!r} has a single pass: call upload, not upload_pass.")


def apply_mean(spec: AdapterSpec, up: AdapterSpec, mean: Vector, adapter: Vector, *, scale: float = 1.0) -> Vector:
    """The adapter plus ``scale`` times an averaged difference laid out by ``up``; untouched tensors stay."""
    result = adapter.copy()
    views, moved = spec.views(result), up.views(mean)
    for tensor in up:
        views[tensor.name] += np.float32(scale) * moved[tensor.name]
    return result
