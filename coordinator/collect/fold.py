"""Fold: the sum of a part of a cohort, by the rules of a plain round.

A grid that runs many clients near each other (``simulations``) need not send every update to the coordinator: it
folds them where they are made and sends one sum for many. Whatever the parts, merged folds give the same bits as one
client after the other, because the accumulator is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from coordinator.accumulator import ExactAccumulator
from coordinator.collect.base import Broadcast, Collected
from coordinator.collect.uploads import PlainUpload, check_upload, read_upload
from coordinator.courier import Reply
from coordinator.population import Participant
from umbel import wire
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import AdapterError, PrivacyError, WireError

WEIGHT_UNIT = 4096.0
_SUMS = ("examples", "seen", "seconds")


@dataclass(frozen=True)
class FoldPlan:
    """What a fold must know of a round; it may be pickled, the broadcast of a collector may not.

    Attributes:
        broadcast: what the updates answer, without its vectors.
        members: the participant by node id.
        by_examples: weigh by the client's number of examples instead of uniformly.
        quantized: updates come as a quantizer's bytes.
    """

    broadcast: Broadcast
    members: Mapping[int, Participant]
    by_examples: bool = False
    quantized: bool = False

    @classmethod
    def of(
        cls, cohort: Iterable[Participant], broadcast: Broadcast, *, by_examples: bool = False, quantized: bool = False
    ) -> FoldPlan:
        """The plan of one cohort's round."""
        bare = bare_broadcast(broadcast.round, broadcast.spec, broadcast.upload_spec, pooled=broadcast.pooled)
        return cls(bare, {member.node: member for member in cohort}, by_examples, quantized)


def bare_broadcast(number: int, spec: AdapterSpec, upload_spec: AdapterSpec, *, pooled: bool) -> Broadcast:
    """A broadcast without vectors, which may be pickled; asking it for one raises AdapterError."""
    return Broadcast(number, spec, _left_out, upload_spec, pooled=pooled)


def _left_out(rank: int) -> tuple[AdapterSpec, Vector]:
    raise AdapterError(f"The adapter of rank {rank} was left out of a fold's plan: ask the round's own broadcast.")


@dataclass
class Fold:
    """The running sum. A reply with a wrong hash, length, value or weight is counted and never added."""

    plan: FoldPlan
    survivors: list[str] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    bytes_up: int = 0
    answered: int = 0

    def __post_init__(self) -> None:
        unit = WEIGHT_UNIT if self.plan.by_examples else 1.0
        self.accumulator = ExactAccumulator(self.plan.broadcast.upload_spec.size, unit=unit)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "plan": None}  # whoever merges a part has the plan

    def take(self, reply: Reply) -> None:
        """Adds one client's reply."""
        if reply.records is None:
            self.answered += 1
            self._reject(reply.reason)
            return
        records, plan = reply.records, self.plan
        self._add(
            plan.members[reply.node],
            wire.payload_bytes(records),
            lambda rank: read_upload(
                records, rank, plan.broadcast, by_examples=plan.by_examples, quantized=plan.quantized
            ),
        )

    def take_unpacked(self, node: int, reply: wire.TrainReply) -> None:
        """:meth:`take` of a client in this very process, whose reply was not made a message: the same rules."""
        plan = self.plan
        self._add(
            plan.members[node],
            reply.update.nbytes,
            lambda rank: check_upload(
                reply, rank, plan.broadcast, by_examples=plan.by_examples, quantized=plan.quantized
            ),
        )

    def _add(self, member: Participant, size: int, read: Callable[[int], PlainUpload]) -> None:
        self.answered += 1
        self.bytes_up += size
        try:
            upload = read(member.rank)
            self.accumulator.add(upload.vector, upload.weight)
        except (AdapterError, PrivacyError, WireError) as error:
            self._reject(str(error))
            return
        metrics = upload.metrics
        self.survivors.append(member.site)
        for key in _SUMS:
            self._note(key, metrics.get(key, 0.0))
        if "loss" in metrics:  # a private client does not tell
            self._note("loss_seen", metrics.get("seen", 0.0))
            self._note("loss_sum", metrics["loss"] * metrics.get("seen", 0.0))

    def merge(self, part: Fold) -> None:
        """Adds another part of the cohort, of other clients."""
        self.accumulator.merge(part.accumulator)
        self.answered += part.answered
        self.bytes_up += part.bytes_up
        self.survivors += part.survivors
        for reason, count in part.rejected.items():
            self._reject(reason, count)
        for key, values in part.metrics.items():
            self.metrics.setdefault(key, []).extend(values)

    def export(self) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
        """All but the plan: what JSON holds, and the sum."""
        numbers, values = self.accumulator.export()
        head = {
            "survivors": self.survivors,
            "rejected": self.rejected,
            "metrics": self.metrics,
            "bytes_up": self.bytes_up,
            "answered": self.answered,
            "numbers": numbers,
        }
        return head, values

    @classmethod
    def restore(cls, plan: FoldPlan, head: dict[str, Any], values: npt.NDArray[np.float64]) -> Fold:
        """The fold of which :meth:`export` told.

        Raises:
            AdapterError: the sum is no float64 vector of finite numbers.
        """
        made = cls(plan, head["survivors"], head["rejected"], head["metrics"], head["bytes_up"], head["answered"])
        made.accumulator = ExactAccumulator.restore(head["numbers"], values)
        return made

    def fill(self, collected: Collected, cohort: int) -> Collected:
        """Writes what came of a whole cohort into ``collected`` and returns it."""
        collected.survivors = sorted(self.survivors)
        collected.missing = cohort - self.answered
        collected.bytes_up += self.bytes_up
        for reason, count in self.rejected.items():
            collected.rejected[reason] = collected.rejected.get(reason, 0) + count
        # math.fsum is exact, so the metrics do not depend on the order of arrival either.
        sums = {key: math.fsum(values) for key, values in self.metrics.items()}
        seen, loss = sums.pop("loss_seen", 0.0), sums.pop("loss_sum", 0.0)
        collected.metrics = sums
        if seen:
            collected.metrics["loss"] = loss / seen
        if self.accumulator.count:
            collected.mean = self.accumulator.mean()
        return collected

    def _note(self, key: str, value: float) -> None:
        self.metrics.setdefault(key, []).append(value)

    def _reject(self, reason: str, count: int = 1) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + count


@runtime_checkable
class FoldingGrid(Protocol):
    """A grid that can sum where the clients run."""

    def fold_messages(self, messages: Iterable[Message], plan: FoldPlan, *, timeout: float) -> Iterator[Fold]:
        """Runs train messages and yields the sums of disjoint parts; each message counts in at most one.

        Args:
            messages: of one round, one a node.
            plan: of the round.
            timeout: seconds after which nothing more is waited for.
        """
        ...
