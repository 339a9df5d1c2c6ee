"""Replies as they come out of the SuperLink: what one site sends can spoil that site's reply and nothing else.

Flower's ``Grid.pull_messages`` reads several replies in one go. Whatever it cannot read in one of them it raises, and
the others are lost with it; it waits up to two hours for parts that were announced and never sent, while all other
replies lie; it takes as many bytes as a sender likes; and it believes what the body says about which order it answers.
Any site that may join could therefore end or stop every run. Here each reply is read by itself, is bounded, is left for
later while parts of it are missing, and is attributed by the SuperLink's own record.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

from umbel.errors import WireError
from umbel.wire import Refusal

MAX_BYTES = 1 << 30
"""Most bytes of one reply, unless the run knows how much its sites have to send."""
MAX_PARTS = 1 << 10
"""Most objects of one reply: Flower's chunks have 5 MB."""
AT_ONCE = 4
"""Replies that a grid of another kind may hand over together."""
ASKED_AT_ONCE = 64
"""Orders that the SuperLink is asked about in one request: replies are announced together, and read one by one."""


def most_bytes(values: int) -> int:
    """A limit for replies of sites that upload about so many values.

    A masked value has up to 8 bytes, and the second pass of a method of two may be larger than the first; the keys and
    shares of secure aggregation come on top.
    """
    return 32 * values + (64 << 20)


class _NotYetError(Exception):
    """A part that was announced has not come."""


class _UnreadableError(Exception):
    """A reply is not what was agreed; the text says why."""


class Puller:
    """Hands over replies one by one, in order of arrival.

    Args:
        grid: any of Flower's. Over Flower's own HTTP grid replies are read as described above; others hand over
            messages that never were bytes of somebody else.
        limit: most bytes of one reply.
    """

    def __init__(self, grid: Grid, limit: int = MAX_BYTES) -> None:
        self.limit = limit
        self._grid = grid
        self._begun: dict[str, _Announced] = {}
        self._come: deque[tuple[str, Message]] = deque()

    def pull(self, orders: Sequence[str]) -> Iterator[tuple[str, Message | Refusal]]:
        """What has come since: the order's message id, and the reply or why it cannot be read.

        Whoever stops in the middle finds the rest with the next call.

        Args:
            orders: message ids of the orders that are still unanswered.
        """
        if not isinstance(self._grid, HttpGrid):
            yield from self._ready()
            for some in _chunks(orders, AT_ONCE):
                found = self._grid.pull_messages(some)
                self._come.extend((message.metadata.reply_to_message_id, message) for message in found)
                yield from self._ready()
            return
        self._begun = {order: self._begun[order] for order in orders if order in self._begun}
        for some in _chunks([order for order in orders if order not in self._begun], ASKED_AT_ONCE):
            self._begun |= self._announced(self._grid, some)
        for order, announced in list(self._begun.items()):
            try:
                read: Message | Refusal = announced.read(self.limit)
            except _NotYetError:
                continue
            except httpx.HTTPError as error:
                if not _too_large(error):
                    raise
                read = _refused("it is larger than the SuperLink hands over")
            except _UnreadableError as error:
                read = _refused(str(error))
            del self._begun[order]
            yield order, read

    def _ready(self) -> Iterator[tuple[str, Message]]:
        while self._come:
            yield self._come.popleft()

    @staticmethod
    def _announced(grid: HttpGrid, orders: list[str]) -> dict[str, _Announced]:
        found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=orders))
        run = grid.run.run_id
        return {
            proto.metadata.reply_to_message_id: _Announced(grid, run, proto.metadata.message_id, tree)
            for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True)
        }


@dataclass(slots=True)
class _Announced:
    """A reply that the SuperLink knows of; its parts may still be on their way."""

    grid: HttpGrid
    run: int
    message: str
    tree: Any
    missing: str = ""
    """The part that had not come when this was last looked at: asked for first, so that nothing else is fetched twice
    while it is missing."""

    def read(self, limit: int) -> Message:
        """The reply, once all of it is there; the SuperLink then forgets it.

        Raises:
            _NotYetError: a part is missing still. Nothing is kept of the others.
            _UnreadableError: it is no reply, or too large.
            httpx.HTTPError: the SuperLink cannot be reached.
        """
        if self.missing:
            self._part(self.missing)
        try:
            message = self._inflated(limit)
        except (_NotYetError, httpx.HTTPError):
            raise
        except _UnreadableError:
            self._forget()
            raise
        except Exception as error:  # of Flower's readers, on bytes that somebody else made
            self._forget()
            raise _UnreadableError(type(error).__name__) from None
        self._forget()
        return message

    def _inflated(self, limit: int) -> Message:
        parts = list(dict.fromkeys(part.object_id for part in islice(iterate_object_tree(self.tree), MAX_PARTS + 1)))
        if len(parts) > MAX_PARTS:
            raise _UnreadableError(f"it has more than {MAX_PARTS} parts")
        message = inflate_object_from_contents(self.message, pull_objects(parts, _bounded(self._part, limit)))
        if not isinstance(message, Message) or not (message.has_error() or type(message.content) is RecordDict):
            raise _UnreadableError("it holds no records")
        return message

    def _part(self, name: str) -> bytes:
        request = PullObjectRequest(node=self.grid.node, run_id=self.run, object_id=name)
        found = self.grid._runtime_client.PullObject(request)
        if not found.object_found:
            raise _UnreadableError("a part of it was never sent")
        if not found.object_available:
            self.missing = name
            raise _NotYetError
        return bytes(found.object_content)

    def _forget(self) -> None:
        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self.run, message_object_id=self.message)
        )


def _bounded(part: Callable[[str], bytes], limit: int) -> Callable[[str], bytes]:
    """``part``, until it has given ``limit`` bytes; called from several threads."""
    lock, left = threading.Lock(), [limit]

    def take(name: str) -> bytes:
        content = part(name)
        with lock:
            left[0] -= len(content)
            if left[0] < 0:
                raise _UnreadableError(f"it is larger than {limit} bytes")
        return content

    return take


def _too_large(error: httpx.HTTPError) -> bool:
    return (
        isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    )


def _refused(why: str) -> Refusal:
    return Refusal(WireError.exit_code, f"The reply cannot be read: {why}.")


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
