"""The asynchronous loop (FedBuff, Nguyen et al. 2022, arXiv 2106.06581): clients are kept busy, the buffer makes steps.

A round is one step of the buffer. A client that has answered is asked again with the newest adapter, at most once a
round, so that nobody trains the same adapter twice and a site's privacy budget for all rounds is enough. Its update
counts less the older the adapter was from which it started, and not at all beyond ``strategy.max-staleness``.

The state is checkpointed after every step together with who is busy and with what. In the in-memory grid, where
replies come in the order of the orders, a killed run resumes to the bit-identical adapter; over a network, replies
come when they come.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from coordinator.checkpoint import Checkpoint, save_checkpoint
from coordinator.collect import Broadcast, Collected
from coordinator.collect.uploads import read_upload
from coordinator.courier import Reply
from coordinator.federation import Federation
from coordinator.flight import Flight, Version
from coordinator.mailbox import Mailbox
from coordinator.population import Participant
from coordinator.pulling import most_bytes
from strategies.base import StrategyState
from strategies.fedbuff import FedBuff
from strategies.planner import buffer, quantizer
from umbel import wire
from umbel.errors import AdapterError, StrategyError, WireError
from umbel.wire import MessageType, TrainOrder

logger = logging.getLogger("flwr.umbel")


class AsynchronousFederation(Federation):
    """One asynchronous run; made and used as :class:`coordinator.federation.Federation`.

    Args:
        grid: Flower's, for the training orders.
        *arguments: as for Federation.

    Raises:
        StrategyError: the method cannot take late updates.
    """

    def __init__(self, grid: Grid, *arguments: Any) -> None:
        super().__init__(*arguments)
        federation = self._config.federation
        found = buffer(self._config, self._strategy)
        if found is None:
            raise StrategyError("An asynchronous run needs a buffer: set strategy.buffer to at least 1.")
        self._buffer: FedBuff = found
        values = self._spec.size + self._strategy.upload_spec(self._spec, 1).size
        self._mail = Mailbox(grid, MessageType.TRAIN, timeout=federation.timeout, limit=most_bytes(values))
        everybody = len(self._population)
        self._busy = everybody if federation.cohort == "all" else min(federation.cohort_size, everybody)
        self._by_node = {member.node: member for member in self._population}
        self._flight = Flight()
        self._done: set[str] = set()

    def run(self, checkpoint: Checkpoint) -> StrategyState:
        """Makes the steps that are left. Who is still busy at the end is not waited for.

        Raises:
            FederationError: nobody is left to ask and the buffer holds fewer than ``federation.minimum`` uploads.
        """
        state = checkpoint.state
        self._buffer.version = checkpoint.round
        self._resume(Flight.load(self._folder.checkpoint, checkpoint.round))
        for number in range(checkpoint.round + 1, self._config.federation.rounds + 1):
            state = self._gather(number, state)
            self._flight.save(self._folder.checkpoint, number)
            save_checkpoint(self._folder.checkpoint, Checkpoint(number, state, self._spec.hash))
            Flight.forget(self._folder.checkpoint, number)
        return state

    def _resume(self, kept: Flight) -> None:
        """Asks those again who were busy when the run was killed, in the same order and with the same adapters."""
        members = {member.site: member for member in self._population}
        for site, number in kept.rounds.items():
            if site in members:
                self._ask(members[site], number, kept.versions[number])

    def _gather(self, number: int, state: StrategyState) -> StrategyState:
        started = time.perf_counter()
        collected = Collected()
        broadcast = self._broadcast(number, state)
        version = Version(broadcast.adapter(self._spec.lora.rank)[1], broadcast.extras)
        self._done.clear()
        staleness: dict[str, int] = {}
        full = False
        while not full:
            self._keep_busy(number, version, collected)
            if not self._mail:
                break
            full = self._take(self._mail.take(), number, collected, staleness)
        collected.survivors = sorted(staleness)
        gathered = time.perf_counter()
        seen = collected.metrics.pop("loss seen", 0.0)
        loss = collected.metrics.pop("loss sum", 0.0)
        if seen:
            collected.metrics["loss"] = loss / seen
        # What nobody can fill any more is used as it is, if enough have come; _step refuses what is too little.
        collected.uploads = self._buffer.take(partial=not full) if len(self._buffer) else []
        state = self._step(number, self._population[: self._buffer.goal], collected, state)
        late = [float(value) for value in staleness.values()]
        more = {"staleness": {"mean": sum(late) / len(late), "max": max(late)}, "busy": len(self._flight.rounds)}
        self._record(number, self._buffer.goal, collected, state, started=started, gathered=gathered, more=more)
        return state

    def _keep_busy(self, number: int, version: Version, collected: Collected) -> None:
        """Asks idle clients, in an order that the seed fixes, until enough are busy."""
        idle = [m for m in self._population if m.site not in self._flight.rounds and m.site not in self._done]
        room = self._busy - len(self._flight.rounds)
        for member in sorted(idle, key=lambda m: self._lot(m.site, number))[: max(room, 0)]:
            collected.bytes_down += wire.payload_bytes(self._ask(member, number, version))

    def _lot(self, site: str, number: int) -> bytes:
        return hashlib.sha256(f"{self._config.run.seed} {number} {site}".encode()).digest()

    def _ask(self, member: Participant, number: int, version: Version) -> RecordDict:
        order = TrainOrder(number, self._spec.hash, version.adapter, extras=version.extras)
        records = wire.pack_train_order(order)
        self._mail.send(member.node, records, group=str(number))
        self._flight.start(member.site, number, version)
        return records

    def _take(self, reply: Reply, number: int, collected: Collected, staleness: dict[str, int]) -> bool:
        """Uses one reply; True when the buffer is full."""
        member = self._by_node[reply.node]
        trained = self._flight.land(member.site)
        if trained == number:
            self._done.add(member.site)  # it has trained the newest adapter: asked again after the next step
        if reply.records is None:
            collected.reject(reply.reason)
            self._done.add(member.site)
            return False
        collected.bytes_up += wire.payload_bytes(reply.records)
        broadcast = Broadcast(
            trained,
            self._spec,
            lambda _rank: (self._spec, self._spec.zeros()),
            self._strategy.upload_spec(self._spec, trained),
        )
        by_examples = self._config.federation.weights == "examples"
        try:
            upload = read_upload(
                reply.records,
                member.rank,
                broadcast,
                by_examples=by_examples,
                quantized=quantizer(self._config) is not None,
            )
        except (AdapterError, WireError) as error:
            collected.reject(str(error))
            self._done.add(member.site)
            return False
        before = self._buffer.dropped
        full = self._buffer.add(member.site, trained - 1, upload.vector, upload.weight)
        if self._buffer.dropped > before and member.site not in staleness:
            collected.reject(f"an update was older than strategy.max-staleness {self._buffer.max_staleness}")
            return False
        staleness[member.site] = number - trained
        for key in ("examples", "seen", "seconds"):
            collected.metrics[key] = collected.metrics.get(key, 0.0) + upload.metrics.get(key, 0.0)
        if "loss" in upload.metrics:  # a private client does not tell
            seen = upload.metrics.get("seen", 0.0)
            for key, value in (("loss seen", seen), ("loss sum", seen * upload.metrics["loss"])):
                collected.metrics[key] = collected.metrics.get(key, 0.0) + value
        return full
