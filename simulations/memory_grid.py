"""MemoryGrid: Flower's public Grid in one process, without a SuperLink, for tests and small experiments.

A client runs when its reply is pulled, so nothing is held that was not asked for. Faults are a function
of the message, so that any loss, delay or duplicate can be played exactly.
"""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

ClientFunction = Callable[[Message, Context], Message]
Fault = Callable[[int, Message], str | None]
"""Given the node's index and its message: None, "lost" (no reply ever), "crash" (an error reply) or "twice"."""

_CRASHED = 8  # Flower's code for a ClientApp that died


class MemoryGrid(Grid):
    """A grid of ``nodes`` virtual nodes that run ``client`` in this process.

    Args:
        client: a ClientApp or anything that answers a message.
        nodes: how many.
        run_config: the run's options, as Flower would hand them over.
        fault: what goes wrong; nothing by default.
        delay: how often a reply is asked for in vain before it comes, by node index and message: slow clients.
    """

    def __init__(
        self,
        client: ClientFunction,
        nodes: int,
        run_config: dict[str, bool | int | float | str] | None = None,
        *,
        fault: Fault | None = None,
        delay: Callable[[int, Message], int] | None = None,
    ) -> None:
        if getattr(TaskIdentity, "_run_id", None) is None:  # a Message asks its process which run it belongs to
            TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0
        self._client = client
        self._fault = fault
        self._delay = delay
        self._left: dict[str, int] = {}
        self._waiting: dict[str, Message] = {}
        self._again: list[Message] = []
        self.contexts = {
            node + 1: Context(
                run_id=1,
                node_id=node + 1,
                node_config={"partition-id": node, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node in range(nodes)
        }
        self.sent: list[tuple[int, str]] = []
        """Node index and message type of every message pushed."""

    def set_run(self, run: object) -> None:
        """Does nothing: there is one run."""

    @property
    def run(self) -> object:  # type: ignore[override]
        """There is no Flower run behind this grid."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Deprecated by Flower; Message's constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids, 1 to ``nodes``."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages in; returns their new ids."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier  # as Flower's own grids do; there is no setter
            self._waiting[identifier] = message
            if self._delay is not None:
                self._left[identifier] = self._delay(message.metadata.dst_node_id - 1, message)
            self.sent.append((message.metadata.dst_node_id - 1, message.metadata.message_type))
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Runs the clients whose replies are asked for, one after the other."""
        replies = [self._again.pop()] if self._again else []
        for identifier in message_ids:
            if self._left.get(identifier, 0) > 0:
                self._left[identifier] -= 1
                continue
            message = self._waiting.pop(identifier, None)
            if message is not None:
                replies.extend(self._run(message))
        return replies

    def _run(self, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        fault = self._fault(node - 1, message) if self._fault else None
        if fault == "lost":
            return []
        if fault == "crash":
            return [Message(Error(_CRASHED, "the client crashed"), reply_to=message)]
        try:
            reply = self._client(message, self.contexts[node])
        except Exception:
            return [Message(Error(_CRASHED, traceback.format_exc(limit=-3)), reply_to=message)]
        if fault == "twice":
            self._again.append(reply)
        return [reply]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pushes, then pulls once."""
        return self.pull_messages(cast("list[str]", self.push_messages(messages)))
