"""VirtualGrid: what the grids of virtual devices have in common, whatever carries their messages."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import ClassVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class VirtualGrid(Grid):
    """A grid of ``devices`` virtual devices, node ids 1 to ``devices``; pushed messages wait in ``_unsent``.

    Subclasses send them at the next pull, so that what was pushed together can travel together.
    """

    _pause: ClassVar[float] = 0.0
    """Seconds between two pulls that brought nothing, where pulling itself does not wait."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._unsent: list[Message] = []

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
        """Node ids, 1 to ``devices``."""
        return range(1, self._devices + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages in; returns their new ids. They are sent together at the next pull."""
        taken = [stamped(message) for message in messages]
        self._unsent += taken
        return [message.metadata.message_id for message in taken]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pushes, then pulls until all replies are here or ``timeout`` seconds have passed."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            found = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
            if not found and self._pause:
                time.sleep(self._pause)
        return replies


def stamped(message: Message) -> Message:
    """The message with a fresh id."""
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex  # as Flower's own grids do; there is no setter
    return message


def end_of_life(message: Message) -> float:
    """When the message's time to live is over, in seconds since the epoch."""
    return float(message.metadata.created_at + message.metadata.ttl)


def by_kind(messages: Sequence[Message]) -> dict[str, list[Message]]:
    """The messages of each type, in order of node id; types in the order in which they first came."""
    kinds: dict[str, list[Message]] = {}
    for message in messages:
        kinds.setdefault(message.metadata.message_type, []).append(message)
    return {kind: sorted(found, key=lambda message: message.metadata.dst_node_id) for kind, found in kinds.items()}
