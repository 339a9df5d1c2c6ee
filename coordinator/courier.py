"""Courier: orders out, replies in, one at a time, over Flower's public Grid.

Flower's own ``send_and_receive`` holds every reply of a round at once. This courier pulls one after the other
(:mod:`coordinator.pulling`) and hands each on before it asks for the next, so memory does not grow with the cohort.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.pulling import Puller
from umbel.wire import MessageType, Refusal, unpack_refusal

if TYPE_CHECKING:
    from coordinator.collect.fold import Fold, FoldPlan

_REASON = 300
_REPORT = 8192
"""Characters of a node's report that are looked at, from its beginning and from its end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: either records, or why there are none."""

    node: int
    records: RecordDict | None
    refusal: Refusal | None = None

    @property
    def reason(self) -> str:
        """Why there are no records: one line of at most 300 characters, whatever a node or its runtime said."""
        text = " ".join(self.refusal.message.split()) if self.refusal else ""
        return text if len(text) <= _REASON else text[: _REASON - 1] + "…"


class Courier:
    """Sends the same message type to many nodes and streams the replies in order of arrival."""

    def __init__(self, grid: Grid, *, poll: float = 0.05) -> None:
        self._grid = grid
        self._poll = poll
        self._puller = Puller(grid)

    def expect(self, limit: int) -> None:
        """From now on a reply of more than ``limit`` bytes is none."""
        self._puller.limit = limit

    def nodes(self) -> list[int]:
        """Nodes that are connected now."""
        return sorted(self._grid.get_node_ids())

    @property
    def folds(self) -> bool:
        """Whether the grid sums updates where the clients run (:mod:`coordinator.collect.fold`)."""
        return hasattr(self._grid, "fold_messages")

    def fold(
        self,
        kind: MessageType,
        orders: Sequence[tuple[int, Callable[[], RecordDict]]],
        plan: FoldPlan,
        *,
        timeout: float,
        group: str,
    ) -> Iterator[Fold]:
        """As :meth:`ask`, on a grid that :attr:`folds`: yields the sums of disjoint parts instead of single replies."""
        messages = (Message(make(), node, kind.value, ttl=timeout, group_id=group) for node, make in orders)
        yield from self._grid.fold_messages(messages, plan, timeout=timeout)  # type: ignore[attr-defined]

    def ask(
        self,
        kind: MessageType,
        orders: Sequence[tuple[int, Callable[[], RecordDict]]],
        *,
        timeout: float,
        group: str,
    ) -> Iterator[Reply]:
        """Sends one order to each node and yields replies until all came or ``timeout`` seconds passed.

        Each order is made when it is sent. A node that fails, refuses or is lost is yielded with a refusal; one
        that stays silent is not yielded. A reply is attributed by the message it answers, never by its claimed
        source. Every node is yielded at most once, whatever is delivered twice. A reply's records are emptied as
        soon as the next reply is asked for: copy what must stay.

        Args:
            kind: the message type.
            orders: node id and a function that makes the records.
            timeout: seconds from the first message on; also the messages' time to live.
            group: Flower's group id, the round.
        """
        deadline = time.monotonic() + timeout
        waiting: dict[str, int] = {}
        for node, make in orders:
            message = Message(make(), node, kind.value, ttl=timeout, group_id=group)
            for identifier in self._grid.push_messages([message]):
                waiting[identifier] = node
        while waiting and time.monotonic() < deadline:
            came = False
            for order, read in self._puller.pull(list(waiting)):
                if order in waiting:  # a reply delivered twice is not
                    came = True
                    reply = read_reply(waiting.pop(order), read)
                    yield reply
                    _release(reply)
            if waiting and not came:
                time.sleep(self._poll)


def _release(reply: Reply) -> None:
    """Empties a reply that was used: Flower's records hold reference cycles, so vectors would await the collector."""
    if reply.records is not None:
        for arrays in reply.records.array_records.values():
            arrays.clear()
        for values in reply.records.config_records.values():
            values.clear()
        reply.records.clear()


def read_reply(node: int, message: Message | Refusal) -> Reply:
    """What a node's message says: records, or why there are none."""
    if isinstance(message, Refusal):
        return Reply(node, None, message)
    if message.has_error():
        return Reply(node, None, Refusal(int(message.error.code), _cause(message.error.reason or "")))
    refusal = unpack_refusal(message.content)
    return Reply(node, None, refusal) if refusal else Reply(node, message.content)


def _cause(report: str) -> str:
    """What made a node fail, out of Flower's report: without traceback, paths and process numbers of the node.

    The last line of a report with a traceback, else its first line; the same for every node with the same trouble.
    """
    if len(report) > 2 * _REPORT:
        report = f"{report[:_REPORT]}\n{report[-_REPORT:]}"
    lines = [line for line in map(str.strip, report.splitlines()) if line]
    if not lines:
        return "the node failed"
    kind = re.match(r"<class '(?:[\w.]{0,200}\.)?(\w{1,200})\b[^']{0,200}'>:<'", lines[0])
    if any(line.startswith("File ") for line in lines):
        return lines[-1].rpartition("occurred. Message: ")[2].removesuffix("'>")
    told = lines[0].removesuffix("'>")
    return f"{kind.group(1)}: {told[kind.end() :]}" if kind else told
