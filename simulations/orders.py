"""What travels between a RayGrid and its actors: orders to devices, and what came of them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from coordinator.collect.fold import Fold

CRASHED = 8
"""Flower's error code for a ClientApp that died."""


@dataclass(frozen=True, slots=True)
class Order:
    """One message to one device, without its content.

    Attributes:
        metadata: Flower's, with the message's id.
        content: which of the batch's contents it carries.
        state: what the device remembers, pickled; empty for a device that remembers nothing yet.
    """

    metadata: Metadata
    content: int
    state: bytes = b""

    @property
    def id(self) -> str:
        """The message's id."""
        return str(self.metadata.message_id)

    @property
    def node(self) -> int:
        """The device's node id."""
        return int(self.metadata.dst_node_id)


@dataclass
class Batch:
    """Orders that one actor carries out together.

    Attributes:
        orders: of one message type, one a device.
        contents: what they carry, each once: the records, or a reference into the object store.
        fold: sum what comes back by this plan, pickled (or a reference to that), instead of returning it.
        attempts: how often it was lost with its actor.
    """

    orders: list[Order]
    contents: list[Any]
    fold: Any = None
    attempts: int = 0
    expires: float = field(default=float("inf"))

    def __getstate__(self) -> dict[str, Any]:
        # Ray's pickler asks Python about every single object; the standard one takes plain tuples by the hundred.
        plain = [(order.metadata.__dict__, order.content, order.state) for order in self.orders]
        return {**self.__dict__, "orders": pickle.dumps(plain, protocol=pickle.HIGHEST_PROTOCOL)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        plain = pickle.loads(state["orders"])  # noqa: S301 # our own
        orders = [Order(_metadata(values), content, memory) for values, content, memory in plain]
        self.__dict__.update(state, orders=orders)

    def halves(self) -> list[Batch]:
        """Two batches of the same orders, each with one more try, for one that keeps killing its actors."""
        middle = len(self.orders) // 2
        parts = (self.orders[:middle], self.orders[middle:])
        return [Batch(part, self.contents, self.fold, 1, self.expires) for part in parts if part]


@dataclass
class Answer:
    """What came of a batch.

    Attributes:
        replies: one a device, in order; empty when they were folded.
        fold: the sum, when a plan was given.
        states: by node, what a device remembers from now on, where that changed.
        seconds: that the actor worked.
    """

    replies: list[Message]
    fold: Fold | None
    states: dict[int, bytes]
    seconds: float


def _metadata(values: dict[str, Any]) -> Metadata:
    made: Metadata = Metadata.__new__(Metadata)
    made.__dict__.update(values)
    return made


def adopt_identity() -> None:
    """A Message asks its process which run and task it belongs to; in a virtual device's process nobody said so."""
    if getattr(TaskIdentity, "_run_id", None) is None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0


def make_message(metadata: Metadata, content: RecordDict) -> Message:
    """The message that an order stands for."""
    return Message(metadata=metadata, content=content)  # type: ignore[call-overload, no-any-return] # as Flower's grids


def error_reply(message: Message, reason: str) -> Message:
    """The reply of a device that could not answer."""
    return Message(Error(CRASHED, reason), reply_to=message)


def make_context(node: int, nodes: int, run_config: dict[str, Any], state: RecordDict, run_id: int = 1) -> Context:
    """Flower's context of the virtual device ``node`` (1 to ``nodes``), which holds partition ``node`` - 1."""
    return Context(
        run_id=run_id,
        node_id=node,
        node_config={"partition-id": node - 1, "num-partitions": nodes},
        state=state,
        run_config=dict(run_config),
    )
