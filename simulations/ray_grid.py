"""RayGrid: Flower's public Grid on Ray actors, for hundreds to thousands of virtual devices.

The unchanged ServerApp pushes and pulls as on any Grid. What it sends to many devices is put into the object store
once a round; devices are carried out in fixed groups of ``lanes``, by node id, whatever actor is free, so that the
result does not depend on the number of actors. Where only a sum is wanted it is made on the actors (see
``coordinator.collect.fold``). A device's memory stays here, so an actor or machine that dies takes nothing with it.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from flwr.app import Message

from coordinator.collect.fold import Fold, FoldPlan
from coordinator.courier import Reply
from simulations.actor import DeviceActor, Ready, secret_fingerprint
from simulations.clients import STOCK, ClientSource
from simulations.orders import Batch, Order, adopt_identity, error_reply
from simulations.pool import ActorPool, Done
from simulations.shelf import Shelf
from simulations.virtual_grid import VirtualGrid, by_kind, end_of_life
from simulations.world import Sent, World
from umbel import __version__
from umbel.errors import FederationError
from umbel.wire import MessageType, Refusal, payload_bytes

_WAIT = 0.05
"""Seconds that a pull may wait when nothing at all has arrived."""
_HELD = 64
"""Replies that may wait here to be pulled before further ones are fetched."""
_PIECES = 4
"""Batches that each actor gets at most on average, so that none idles long at the end."""
_INLINE = 64 << 10
"""Bytes that travel quicker with a call than through the object store."""
_MOMENT = 0.25
"""Seconds of work that are not worth cutting."""


@dataclass
class Progress:
    """What the devices are doing: of ``kind``, ``done`` of ``total`` messages are answered."""

    kind: str = ""
    done: int = 0
    total: int = 0


class RayGrid(VirtualGrid):
    """A grid of ``nodes`` virtual devices, node ids 1 to ``nodes``, on the Ray that this process is connected to.

    A context manager: actors end with it. Open a Ray with :func:`simulations.cluster.ray_session` before.

    Args:
        nodes: virtual devices; device i holds partition i - 1.
        run_config: flat options of the run.
        client: the ClientApp or where it stands; this project's by default.
        actors: processes that play the devices.
        lanes: most devices that train in one batch; 1 trains each by itself.
        cpus: of an actor.
        gpus: of an actor; may be a fraction.
        world: devices, clock and dropouts; without one every device answers.

    Raises:
        UmbelError: an actor cannot load what the run needs, or a machine has another version or secret.
    """

    def __init__(
        self,
        nodes: int,
        run_config: dict[str, Any],
        *,
        client: ClientSource = STOCK,
        actors: int = 1,
        lanes: int = 1,
        cpus: float = 1.0,
        gpus: float = 0.0,
        world: World | None = None,
    ) -> None:
        adopt_identity()
        super().__init__(nodes)
        self._lanes = max(1, lanes)
        self._actors = actors
        self._world = world
        self._open: dict[str, Message] = {}
        self._ready: dict[str, list[Message]] = {}
        self._shelf = Shelf()
        self._pace: dict[str, float] = {}
        self.progress = Progress()
        self._secret = bool(run_config.get("secagg.enabled", False))
        self._fingerprint = secret_fingerprint() if self._secret else ""
        actor = ray.remote(DeviceActor)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        config = ray.put((client, dict(run_config)))

        def make() -> Any:
            source, flat = ray.get(config)
            return actor.options(**options).remote(source, flat, nodes, self._lanes, self._secret)

        self._pool = ActorPool(make, actors, self._check)
        try:
            self._pool.warm()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayGrid:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the actors and forgets what devices remember. May be called twice."""
        self._pool.stop()
        self._shelf.close()

    @property
    def replaced(self) -> int:
        """Actors that died and were replaced."""
        return self._pool.replaced

    @property
    def busy_seconds(self) -> float:
        """Seconds that all actors together have worked."""
        return self._pool.busy_seconds

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have arrived; waits a moment only while none has."""
        self._send()
        wanted = list(message_ids)
        held = len(self._ready) >= max(_HELD, self._lanes) and not (self._world and self._world.due())
        if not held and not any(map(self._deliverable, wanted)):
            for done in self._pool.step(0.0 if self._ready else _WAIT):
                self._receive(done)
        found: list[Message] = []
        for identifier in wanted:
            if self._deliverable(identifier):
                found += self._ready.pop(identifier)
                self._forget(identifier)
        return found

    def _deliverable(self, identifier: str) -> bool:
        """Whether a reply is here and, where rounds overlap, no other device's comes before it on the clock."""
        due = self._world.due() if self._world is not None else None
        return identifier in self._ready and due in (None, identifier)

    def fold_messages(self, messages: Iterable[Message], plan: FoldPlan, *, timeout: float) -> Iterator[Fold]:
        """See coordinator.collect.fold.FoldingGrid. A device that is lost counts as a refusal."""
        self.push_messages(messages)
        pending = {message.metadata.message_id: message for message in self._unsent}
        deadline = time.monotonic() + timeout
        lost = Fold(plan)
        packed = pickle.dumps(plan, protocol=pickle.HIGHEST_PROTOCOL)
        self._send(packed if len(packed) <= _INLINE else ray.put(packed))
        while pending and time.monotonic() < deadline:
            for identifier in [identifier for identifier in self._ready if identifier in pending]:
                for reply in self._ready.pop(identifier):
                    lost.take(_refused(pending[identifier].metadata.dst_node_id, reply))
                del pending[identifier]
            for done in self._pool.step(_WAIT) if pending else ():
                self._receive(done)
                ours = all(order.id in pending for order in done.batch.orders)  # not a sum that came too late
                if ours and done.answer is not None and done.answer.fold is not None:
                    for order in done.batch.orders:
                        del pending[order.id]
                    yield done.answer.fold
        if pending:
            self._pool.forget()
        yield lost

    def _send(self, fold: Any = None) -> None:
        """Makes batches of what was pushed: fixed groups of devices, each content once in the object store."""
        if not self._unsent:
            return
        messages, self._unsent = self._unsent, []
        self._drop_expired()
        self.progress = Progress(messages[0].metadata.message_type, 0, len(messages))
        answering = self._ask_world(messages)
        shared = Counter(id(message.content) for message in answering)
        references = {
            id(message.content): ray.put(message.content)
            for message in {id(message.content): message for message in answering}.values()
            if shared[id(message.content)] > 1
        }
        for group in self._groups(answering):
            contents: list[Any] = []
            places: dict[int, int] = {}
            orders = []
            for message in group:
                key = id(message.content)
                if key not in places:
                    places[key] = len(contents)
                    contents.append(references.get(key, message.content))
                node = message.metadata.dst_node_id
                orders.append(Order(message.metadata, places[key], self._shelf.get(node)))
                self._open[message.metadata.message_id] = message
            self._pool.submit(Batch(orders, contents, fold, expires=max(map(end_of_life, group))))

    def _groups(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Groups of one type, in order of node id; train messages in groups of ``lanes``, never across."""
        for kind, ordered in by_kind(messages).items():
            size = self._lanes
            if size == 1 or kind != MessageType.TRAIN:
                size = max(1, -(-len(ordered) // (self._actors * self._pieces(kind, len(ordered)))))
            for start in range(0, len(ordered), size):
                yield ordered[start : start + size]

    def _pieces(self, kind: str, count: int) -> int:
        """Batches an actor: one where all its work takes a moment, several where an actor might idle at the end."""
        seconds = self._pace.get(kind, float("inf")) * count / self._actors
        return int(min(_PIECES, max(1.0, seconds / _MOMENT)))

    def _ask_world(self, messages: Sequence[Message]) -> list[Message]:
        """The messages whose devices will answer; the others' errors are ready at once."""
        if self._world is None:
            return list(messages)
        sizes: dict[int, int] = {}
        sent = []
        for message in messages:
            key = id(message.content)
            if key not in sizes:
                sizes[key] = payload_bytes(message.content)
            metadata = message.metadata
            sent.append(
                Sent(metadata.message_id, metadata.dst_node_id, metadata.message_type, metadata.group_id, sizes[key])
            )
        lost = self._world.play(sent)
        for message in messages:
            reason = lost.get(message.metadata.message_id)
            if reason is not None:
                self._ready[message.metadata.message_id] = [error_reply(message, reason)]
                self.progress.done += 1
        return [message for message in messages if message.metadata.message_id not in lost]

    def _receive(self, done: Done) -> None:
        self.progress.done += len(done.batch.orders)
        if done.answer is None:
            for order in done.batch.orders:
                message = self._open.pop(order.id, None)
                if message is not None:
                    self._ready[order.id] = [error_reply(message, done.reason)]
            return
        self._pace[done.batch.orders[0].metadata.message_type] = done.answer.seconds / len(done.batch.orders)
        for node, state in done.answer.states.items():
            self._shelf.put(node, state)
        for order in done.batch.orders:
            self._open.pop(order.id, None)
        for reply in done.answer.replies:
            known = reply.metadata
            copies = 1 + bool(
                self._world and self._world.repeats(known.src_node_id, known.message_type, known.group_id)
            )
            self._ready.setdefault(known.reply_to_message_id, []).extend([reply] * copies)

    def _drop_expired(self) -> None:
        """Forgets messages whose time to live has passed, as Flower does: nobody waits for them any more."""
        now = time.time()
        for key in [key for key, sent in self._open.items() if end_of_life(sent) < now]:
            del self._open[key]
            self._forget(key)
        for key in [key for key, replies in self._ready.items() if end_of_life(replies[0]) < now]:
            del self._ready[key]
            self._forget(key)

    def _forget(self, identifier: str) -> None:
        if self._world is not None:
            self._world.delivered(identifier)

    def _check(self, ready: Ready) -> None:
        if ready.version != __version__:
            raise FederationError(
                f"A machine of the cluster has umbel {ready.version} and this one {__version__}: install the same."
            )
        if ready.secret != self._fingerprint:
            raise FederationError(
                "A machine of the cluster has another machine.key, so its devices' keys would not be known here: give "
                "all machines the same UMBEL_HOME."
            )


def _refused(node: int, message: Message) -> Reply:
    from coordinator.courier import read_reply

    reply = read_reply(node, message)
    return reply if reply.records is None else Reply(node, None, Refusal(80, "its reply came beside the sum"))
