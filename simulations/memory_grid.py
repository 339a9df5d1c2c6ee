"""MemoryGrid: Flower's public Grid in one process, without a SuperLink, for tests and small experiments.

A client runs when its reply is pulled, so nothing is held that was not asked for. Faults are a function
of the message, so that any loss, delay or duplicate can be played exactly.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import Context, Message, RecordDict

from simulations.orders import adopt_identity, error_reply
from simulations.virtual_grid import VirtualGrid, stamped

ClientFunction = Callable[[Message, Context], Message]
Fault = Callable[[int, Message], str | None]
"""Given the node's index and its message: None, "lost" (no reply ever), "crash" (an error reply) or "twice"."""


class MemoryGrid(VirtualGrid):
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
        adopt_identity()
        super().__init__(nodes)
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

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages in; returns their new ids."""
        identifiers = []
        for message in map(stamped, messages):
            identifier = message.metadata.message_id
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
            return [error_reply(message, "the client crashed")]
        try:
            reply = self._client(message, self.contexts[node])
        except Exception:
            return [error_reply(message, traceback.format_exc(limit=-3))]
        if fault == "twice":
            self._again.append(reply)
        return [reply]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pushes, then pulls once."""
        return self.pull_messages(cast("list[str]", self.push_messages(messages)))
