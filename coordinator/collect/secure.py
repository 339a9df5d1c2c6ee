"""SecureCollector: the coordinator reads the sum of a cohort and nothing else.

Training happens in the first stage, so that stragglers are no dropouts of the protocol. Masked vectors are
added as they come. An aborted attempt reveals nothing and is repeated with fresh keys; clients then send the
update that they trained already.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.collect.plain import PlainCollector
from coordinator.courier import Courier, Reply
from coordinator.population import Participant
from privacy.secagg import Aggregate, Roster, SecAggCoordinator, SecAggParameters
from privacy.secagg.agreement import agree, round_context, site_id
from umbel import wire
from umbel.config import RunConfig
from umbel.errors import ProtocolViolation, RoundAborted, SecAggError, StrategyError, WireError
from umbel.files import write_atomic
from umbel.wire import MessageType, SecAggStep, TrainOrder

logger = logging.getLogger("flwr.umbel")


class SecureCollector(Collector):
    """Drives the protocol over Flower messages.

    Args:
        courier: how messages travel.
        config: of the run; both ends derive the round's parameters from it.
        roster: the identities that the coordinator knows.
        run: id of the run.
        folder: of the run's checkpoint; remembers which round was unmasked last.
    """

    def __init__(self, courier: Courier, config: RunConfig, roster: Roster, *, run: str, folder: Path) -> None:
        self._courier = courier
        self._unmasking = folder / "unmasking.json"
        self._config = config
        self._roster = roster
        self._run = run
        self._last = 0

    def describe(self, cohort: int, length: int) -> dict[str, Any] | None:
        """See Collector.

        Raises:
            SecAggError: such a cohort cannot aggregate securely.
        """
        return _public(agree(self._config, cohort, length))

    def collect(self, cohort: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """See Collector. A round that aborts ``secagg.attempts`` times has no survivors.

        If some of its clients had helped to unmask it by then, they will not sum it over other clients ever again,
        and it is lost. So it is after a restart of a coordinator that was killed between unmasking and checkpoint,
        unless the very same clients survive once more.
        """
        if broadcast.pooled:  # one site of a simulation; there is no cohort to hide in
            return PlainCollector(self._courier, timeout=self._config.federation.timeout).collect(cohort, broadcast)
        collected = self.collect_groups([cohort], broadcast)[0]
        if collected.mean is None and self._unmasked() == broadcast.round:
            logger.warning(
                "Round %d is lost, nothing changes: it was unmasked before, and not all of its clients came again",
                broadcast.round,
            )
            collected.lost = True
        return collected

    def _unmasked(self) -> int:
        """The last round of which somebody may have been asked to unmask it; 0 for none."""
        return int(json.loads(self._unmasking.read_bytes())["round"]) if self._unmasking.exists() else 0

    def _remember_unmasking(self, number: int) -> None:
        if self._unmasked() != number:
            write_atomic(self._unmasking, json.dumps({"round": number}).encode())

    def collect_groups(self, groups: Sequence[Sequence[Participant]], broadcast: Broadcast) -> list[Collected]:
        """See Collector: every group aggregates by itself, in a context of its own, stage by stage at the same time.

        A group that aborts is repeated by itself; the others keep what they have.
        """
        if any(broadcast.layout(m.rank).size != broadcast.upload_spec.size for group in groups for m in group):
            raise StrategyError(
                "Secure aggregation adds vectors of one length, and this strategy's uploads differ with the rank: give "
                "every client the same LoRA rank."
            )
        every = [Collected(missing=len(group)) for group in groups]
        waiting = list(range(len(groups)))
        for number in range(1, self._config.secagg.attempts + 1):
            attempts: dict[int, _Attempt] = {}
            for index in waiting:
                before = every[index]
                every[index] = Collected(
                    missing=len(groups[index]),
                    rejected=before.rejected,
                    bytes_up=before.bytes_up,
                    bytes_down=before.bytes_down,
                )
                attempts[index] = self._attempt(groups[index], broadcast, every[index])
            waiting = []
            for index, error in _run_together(self._courier, attempts, str(broadcast.round)).items():
                if isinstance(error, RoundAborted):
                    logger.warning("Round %d, attempt %d: %s", broadcast.round, number, error)
                    waiting.append(index)
                else:
                    every[index].reject(str(error))
            if not waiting:
                break
        return every

    def _attempt(self, group: Sequence[Participant], broadcast: Broadcast, collected: Collected) -> _Attempt:
        # Contexts must never come back, not even after a restart: the clock only goes forward.
        self._last = max(self._last + 1, time.time_ns())
        return _Attempt(
            self._config, self._roster, self._run, self._last, group, broadcast, collected, self._remember_unmasking
        )


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one attempt wants sent, and what it does with a reply."""

    kind: MessageType
    orders: list[tuple[int, Callable[[], RecordDict]]]
    take: Callable[[Reply], None]
    timeout: float


def _run_together(courier: Courier, attempts: dict[int, _Attempt], group: str) -> dict[int, SecAggError]:
    """Runs attempts with disjoint members stage by stage; returns why those failed that did."""
    failed: dict[int, SecAggError] = {}
    running = {index: attempt.stages() for index, attempt in attempts.items()}
    while running:
        stages: list[_Stage] = []
        for index, left in list(running.items()):
            try:
                stages.append(next(left))
            except StopIteration:
                del running[index]
            except SecAggError as error:
                failed[index] = error
                del running[index]
        if not stages:
            break
        takers = {node: stage.take for stage in stages for node, _ in stage.orders}
        orders = [order for stage in stages for order in stage.orders]
        for reply in courier.ask(stages[0].kind, orders, timeout=stages[0].timeout, group=group):
            takers[reply.node](reply)
    return failed


class _Attempt:
    """One attempt of one cohort: five stages, each with its own deadline."""

    def __init__(
        self,
        config: RunConfig,
        roster: Roster,
        run: str,
        number: int,
        cohort: Sequence[Participant],
        broadcast: Broadcast,
        collected: Collected,
        unmasking: Callable[[int], None],
    ) -> None:
        self._unmasking = unmasking
        self._config = config
        self._broadcast = broadcast
        self._collected = collected
        self._names = {site_id(member.site): member.site for member in cohort}
        self._nodes = {site_id(member.site): member.node for member in cohort}
        self._ids = {node: identifier for identifier, node in self._nodes.items()}
        self._stages: dict[str, dict[str, float]] = {}
        self._number = number
        self._run = run
        self._roster = roster
        self._cohort = len(cohort)

    def stages(self) -> Iterator[_Stage]:
        """The stages in their order, to be played one by one; the end fills in what was collected.

        Raises:
            RoundAborted: too few clients were left at some stage.
            SecAggError: this cohort cannot aggregate securely.
        """
        self._parameters = agree(self._config, self._cohort, self._broadcast.upload_spec.size)
        order = self._train_order()
        context = round_context(self._config, self._run, self._broadcast.round, self._number, order.bound)
        self._protocol = protocol = SecAggCoordinator(self._parameters, context, self._roster)
        wait = self._config.secagg.stage_timeout
        yield from self._stage(
            "keys",
            MessageType.TRAIN,
            self._nodes,
            self._sends(order),
            protocol.receive_advertisement,
            self._config.federation.timeout,
        )
        key_list = self._shared(protocol.key_list())
        yield from self._stage(
            "shares", MessageType.SECAGG_SHARE, protocol.listed, key_list, protocol.receive_shares, wait
        )
        sharing = protocol.close_shares()
        yield from self._stage(
            "masked", MessageType.SECAGG_MASK, sharing, self._delivery, protocol.receive_masked, wait
        )
        survivors = self._shared(protocol.survivors_message())
        if self._broadcast.pass_number > 1 and len(tuple(protocol.survivors)) < self._cohort:
            raise RoundAborted(
                "A client of the first pass is gone, and two sums over different clients would differ by it."
            )
        yield from self._stage(
            "confirmed", MessageType.SECAGG_CONFIRM, protocol.survivors, survivors, protocol.receive_confirmation, wait
        )
        signatures = self._shared(protocol.signatures_message())
        self._unmasking(self._broadcast.round)
        yield from self._stage(
            "unmasked", MessageType.SECAGG_UNMASK, protocol.confirming, signatures, protocol.receive_unmasking, wait
        )
        started = time.perf_counter()
        aggregate = protocol.finish()
        self._stages["decoded"] = {
            "alive": len(aggregate.survivors),
            "seconds": time.perf_counter() - started,
            "bytes": 0,
        }
        self._fill(aggregate)

    def _stage(
        self,
        name: str,
        kind: MessageType,
        ids: Iterable[int],
        make: Callable[[int], RecordDict],
        receive: Callable[[int, bytes], bool],
        timeout: float,
    ) -> Iterator[_Stage]:
        started, alive, size = time.perf_counter(), 0, 0

        def take(reply: Reply) -> None:
            nonlocal alive, size
            if reply.records is None:
                self._collected.reject(f"{name}: {reply.reason}")
                return
            try:
                payload = wire.unpack_secagg(reply.records).payload
                size += len(payload)
                alive += bool(receive(self._ids[reply.node], payload))
            except (ProtocolViolation, WireError) as error:
                self._collected.reject(f"{name}: {error}")

        orders: list[tuple[int, Callable[[], RecordDict]]] = [
            (self._nodes[identifier], lambda i=identifier: make(i))  # type: ignore[misc]
            for identifier in ids
        ]
        yield _Stage(kind, orders, take, timeout)
        self._collected.bytes_up += size
        self._stages[name] = {"alive": alive, "seconds": time.perf_counter() - started, "bytes": size}

    def _train_order(self) -> TrainOrder:
        """The same for everybody, whatever its rank: a round is bound to what was sent, and a client cuts it itself."""
        broadcast = self._broadcast
        spec, adapter = broadcast.adapter(broadcast.spec.lora.rank)
        return TrainOrder(
            broadcast.round,
            spec.hash,
            adapter,
            secagg=wire.secure_order(self._run, len(self._nodes), self._number),
            amount=broadcast.amount,
            extras=broadcast.extras,
            pass_number=broadcast.pass_number,
        )

    def _sends(self, order: TrainOrder) -> Callable[[int], RecordDict]:
        records = wire.pack_train_order(order)
        return lambda _identifier: self._counted(records)

    def _shared(self, payload: bytes) -> Callable[[int], RecordDict]:
        records = wire.pack_secagg(SecAggStep(self._broadcast.round, payload))
        return lambda _identifier: self._counted(records)

    def _delivery(self, identifier: int) -> RecordDict:
        payload = self._protocol.shares_for(identifier)
        return self._counted(wire.pack_secagg(SecAggStep(self._broadcast.round, payload)))

    def _counted(self, records: RecordDict) -> RecordDict:
        self._collected.bytes_down += wire.payload_bytes(records)
        return records

    def _fill(self, aggregate: Aggregate) -> None:
        collected, metrics = self._collected, dict(aggregate.metrics)
        collected.mean = np.asarray(aggregate.mean, dtype=np.float32)
        collected.survivors = sorted(self._names[identifier] for identifier in aggregate.survivors)
        collected.missing = self._cohort - len(collected.survivors)
        loss, seen = metrics.pop("loss", None), metrics.get("seen", 0.0)
        if loss is not None and seen > 0:
            metrics["loss"] = loss / seen
        collected.metrics = metrics
        collected.secagg = self._report(aggregate)

    def _report(self, aggregate: Aggregate) -> dict[str, Any]:
        return {**_public(self._parameters), "late": aggregate.late, "stages": self._stages}


def _public(parameters: SecAggParameters) -> dict[str, Any]:
    return {
        "threshold": parameters.threshold,
        "mode": parameters.mode,
        "minimum": parameters.minimum,
        "corrupt": parameters.corrupt,
        "bits": parameters.bits,
        "cohort": parameters.n,
        "threat_model": parameters.threat_model,
    }
