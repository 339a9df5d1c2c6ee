"""Mailbox: orders whose replies come in any order, while further orders are sent."""

from __future__ import annotations

import time
from collections import deque

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.courier import Reply, read_reply
from coordinator.pulling import MAX_BYTES, Puller
from umbel.wire import MessageType, Refusal

_SILENT = "it stayed silent for federation.timeout seconds"


class Mailbox:
    """Orders that are out, each with its own deadline, and their replies one at a time.

    Args:
        grid: Flower's.
        kind: type of all messages.
        timeout: seconds from an order's sending until it is given up.
        poll: seconds between two looks when nothing has come.
        limit: most bytes of a reply.
    """

    def __init__(
        self, grid: Grid, kind: MessageType, *, timeout: float, poll: float = 0.05, limit: int = MAX_BYTES
    ) -> None:
        self._grid = grid
        self._kind = kind
        self._timeout = timeout
        self._poll = poll
        self._puller = Puller(grid, limit)
        self._out: dict[str, tuple[int, float]] = {}
        self._come: deque[Reply] = deque()

    def __len__(self) -> int:
        """Orders without a reply, and replies that were not taken."""
        return len(self._out) + len(self._come)

    def send(self, node: int, records: RecordDict, *, group: str) -> None:
        """Sends one order; ``group`` is Flower's group id."""
        message = Message(records, node, self._kind.value, ttl=self._timeout, group_id=group)
        for identifier in self._grid.push_messages([message]):
            self._out[identifier] = (node, time.monotonic() + self._timeout)

    def take(self) -> Reply:
        """Waits for the next reply. An order that stays unanswered is given up and comes as a refusal.

        A reply is attributed by the order that it answers, and each order is answered at most once. At most four
        replies are in memory at a time.

        Raises:
            LookupError: no order is out.
        """
        while not self._come:
            if not self._out:
                raise LookupError("no order is out")
            self._pull()
            if not self._come:
                self._give_up()
            if not self._come:
                time.sleep(self._poll)
        return self._come.popleft()

    def _pull(self) -> None:
        for order, read in self._puller.pull(list(self._out)):
            if order in self._out:
                self._come.append(read_reply(self._out.pop(order)[0], read))
                return

    def _give_up(self) -> None:
        now = time.monotonic()
        for identifier, (node, deadline) in list(self._out.items()):
            if now >= deadline:
                del self._out[identifier]
                self._come.append(Reply(node, None, Refusal(0, _SILENT)))
