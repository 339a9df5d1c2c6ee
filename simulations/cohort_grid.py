"""CohortGrid: any Grid, with many virtual devices behind each of its nodes.

Flower's simulation pays for every message: bookkeeping, a copy, an actor's turn. This grid packs the orders of many
devices into few messages over Flower's public API, and makes one of few replies. The coordinator sees the devices and
nothing else. Groups are those of RayGrid, so the same seed gives the same adapter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.collect.fold import Fold, FoldPlan
from coordinator.courier import Reply, read_reply
from simulations.orders import error_reply
from simulations.packed import COHORT, pack_orders, read_packed
from simulations.virtual_grid import VirtualGrid, by_kind, end_of_life
from umbel.errors import WireError
from umbel.wire import MessageType, Refusal

_PIECES = 2
_POLL = 0.05


class CohortGrid(VirtualGrid):
    """A grid of ``devices`` virtual devices, node ids 1 to ``devices``, behind the first nodes of ``inner``.

    Args:
        inner: a grid whose ClientApp understands packed messages (``simulations.client_app``).
        devices: virtual devices; device i holds partition i - 1.
        lanes: most devices that train in one batch; 1 trains each by itself.
        carriers: how many messages are under way at a time; as many as the runtime works on at once.
    """

    _pause = _POLL

    def __init__(self, inner: Grid, devices: int, *, lanes: int = 1, carriers: int = 1) -> None:
        super().__init__(devices)
        self._inner = inner
        self._lanes = max(1, lanes)
        self._carriers = sorted(inner.get_node_ids())[: max(1, carriers)]
        self._away: dict[str, list[Message]] = {}
        self._ready: dict[str, list[Message]] = {}
        self._states: dict[int, RecordDict] = {}

    def set_run(self, run: Any) -> None:
        """Passed on."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """The inner grid's run."""
        return self._inner.run

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies of devices that have arrived."""
        self._send(None)
        wanted = list(message_ids)
        if not any(identifier in self._ready for identifier in wanted) and self._away:
            self._receive(None)
        return [reply for identifier in wanted for reply in self._ready.pop(identifier, ())]

    def fold_messages(self, messages: Iterable[Message], plan: FoldPlan, *, timeout: float) -> Iterator[Fold]:
        """See coordinator.collect.fold.FoldingGrid."""
        self.push_messages(messages)
        self._send(plan)
        deadline = time.monotonic() + timeout
        lost = Fold(plan)
        while self._away and time.monotonic() < deadline:
            parts = self._receive(plan)
            yield from parts
            for identifier in list(self._ready):
                for reply in self._ready.pop(identifier):
                    lost.take(_without_records(reply))
            if not parts:
                time.sleep(_POLL)
        self._away.clear()
        yield lost

    def _send(self, plan: FoldPlan | None) -> None:
        if not self._unsent:
            return
        messages, self._unsent = self._unsent, []
        now = time.time()
        for identifier in [i for i, sent in self._away.items() if end_of_life(sent[0]) < now]:
            del self._away[identifier]  # nobody waits for it any more
        number = 0
        for of_kind in by_kind(messages).values():
            for piece in self._cut(of_kind):
                records = pack_orders(piece, self._states, devices=self._devices, lanes=self._lanes, plan=plan)
                carrier = self._carriers[number % len(self._carriers)]
                number += 1
                known = piece[0].metadata
                packed = Message(records, carrier, COHORT, ttl=known.ttl, group_id=known.group_id)
                for identifier in self._inner.push_messages([packed]):
                    self._away[identifier] = piece

    def _cut(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Pieces of whole groups of lanes, a few for each carrier."""
        train = messages[0].metadata.message_type == MessageType.TRAIN
        pieces = len(self._carriers) * (_PIECES if train else 1)
        size = max(1, -(-len(messages) // pieces))
        if train and self._lanes > 1:
            size = -(-size // self._lanes) * self._lanes
        for start in range(0, len(messages), size):
            yield list(messages[start : start + size])

    def _receive(self, plan: FoldPlan | None) -> list[Fold]:
        """Takes in one packed reply, if there is one; returns its sum, if it was to be folded."""
        for identifier in list(self._away):
            for packed in self._inner.pull_messages([identifier]):
                sent = self._away.pop(packed.metadata.reply_to_message_id, None)
                if sent is None:
                    continue
                fold = self._unpack(packed, sent, plan)
                return [fold] if fold is not None else []
        return []

    def _unpack(self, packed: Message, sent: Sequence[Message], plan: FoldPlan | None) -> Fold | None:
        if packed.has_error():
            self._fail(sent, packed.error.reason or "the node failed")
            return None
        try:
            answer = read_packed(packed.content, len(sent), plan)
        except (WireError, KeyError) as error:
            refusal = read_reply(0, packed)
            self._fail(sent, refusal.reason or str(error))
            return None
        self._states |= answer.states
        for message, reply in zip(sent, answer.replies, strict=False):
            made = error_reply(message, reply) if isinstance(reply, str) else Message(reply, reply_to=message)
            self._ready[message.metadata.message_id] = [made]
        return answer.fold

    def _fail(self, sent: Sequence[Message], reason: str) -> None:
        for message in sent:
            self._ready[message.metadata.message_id] = [error_reply(message, reason)]


def _without_records(reply: Message) -> Reply:
    node = reply.metadata.src_node_id
    found = read_reply(node, reply)
    return found if found.records is None else Reply(node, None, Refusal(80, "its reply came beside the sum"))
