"""PlainCollector: every update is visible to the coordinator, and summed as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import RecordDict

from coordinator.accumulator import ExactAccumulator
from coordinator.central_dp import CentralMechanism
from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.courier import Courier
from coordinator.population import Participant
from strategies.base import Upload
from umbel import wire
from umbel.errors import AdapterError, PrivacyError, WireError
from umbel.wire import MessageType, TrainOrder, TrainReply

_WEIGHT_UNIT = 4096.0


class PlainCollector(Collector):
    """Sums updates in order of arrival; the sum does not depend on that order (see ExactAccumulator).

    Args:
        courier: how messages travel.
        timeout: seconds for a round.
        by_examples: weigh by the client's number of examples instead of uniformly.
        keep_uploads: hold single uploads for a strategy that is not linear; memory then grows with the cohort.
        central: clips each update and releases a noised sum, for a trusted coordinator (client-level privacy).
    """

    def __init__(
        self,
        courier: Courier,
        *,
        timeout: float,
        by_examples: bool = False,
        keep_uploads: bool = False,
        central: CentralMechanism | None = None,
    ) -> None:
        self._courier = courier
        self._timeout = timeout
        self._by_examples = by_examples
        self._keep = keep_uploads
        self._central = central

    def collect(self, cohort: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """See Collector. A reply with a wrong hash, length, value or weight is counted and never averaged."""
        collected = Collected()
        members = {member.node: member for member in cohort}
        accumulator = ExactAccumulator(
            0 if self._keep else broadcast.upload_spec.size, unit=_WEIGHT_UNIT if self._by_examples else 1.0
        )
        seen = loss = 0.0
        answered = 0
        orders = _orders(cohort, broadcast, collected)
        group = str(broadcast.round)
        for reply in self._courier.ask(MessageType.TRAIN, orders, timeout=self._timeout, group=group):
            answered += 1
            member = members[reply.node]
            if reply.records is None:
                collected.reject(reply.reason)
                continue
            try:
                update = wire.unpack_train_reply(reply.records)
                collected.bytes_up += update.update.nbytes
                self._use(update, member, broadcast, accumulator, collected)
            except (AdapterError, PrivacyError, WireError) as error:
                collected.reject(str(error))
                continue
            collected.survivors.append(member.site)
            if "loss" in update.metrics:  # a private client does not tell
                seen += update.metrics.get("seen", 0.0)
                loss += update.metrics["loss"] * update.metrics.get("seen", 0.0)
            for key in ("examples", "seen", "seconds"):
                collected.metrics[key] = collected.metrics.get(key, 0.0) + update.metrics.get(key, 0.0)
        collected.missing = len(cohort) - answered
        collected.survivors.sort()
        if seen:
            collected.metrics["loss"] = loss / seen
        if self._central is not None and not broadcast.pooled:
            collected.mean, collected.noised = self._central.release(accumulator), True
            collected.metrics.pop("loss", None)  # the noise does not cover it
        elif accumulator.count and not self._keep:
            collected.mean = accumulator.mean()
        return collected

    def _use(
        self,
        reply: TrainReply,
        member: Participant,
        broadcast: Broadcast,
        accumulator: ExactAccumulator,
        collected: Collected,
    ) -> None:
        expected = broadcast.upload_spec
        if member.rank != broadcast.spec.lora.rank:
            expected = expected.with_rank(member.rank)
        if reply.spec_hash != expected.hash:
            raise AdapterError("An update has another layout than asked for: both ends must use the same strategy.")
        expected.check(reply.update)
        weight = reply.metrics.get("examples", 0.0) if self._by_examples else 1.0
        if self._keep:
            if not weight > 0:
                raise AdapterError(f"An update's weight is {weight}, expected a positive number: it has no data.")
            collected.uploads.append(Upload(reply.update, weight, member.rank))
        elif self._central is not None and not broadcast.pooled:
            accumulator.add(self._central.clip(reply.update), weight)
        else:
            accumulator.add(reply.update, weight)


def _orders(
    cohort: Sequence[Participant], broadcast: Broadcast, collected: Collected
) -> list[tuple[int, Callable[[], RecordDict]]]:
    """One set of records for every rank, shared by all its messages, so that one copy is in memory."""
    made: dict[int, RecordDict] = {}

    def records(rank: int) -> RecordDict:
        if rank not in made:
            spec, vector = broadcast.adapter(rank)
            made[rank] = wire.pack_train_order(
                TrainOrder(
                    broadcast.round,
                    spec.hash,
                    vector,
                    pooled=broadcast.pooled,
                    amount=broadcast.amount,
                    extras=broadcast.extras,
                )
            )
        collected.bytes_down += broadcast.adapter(rank)[1].nbytes
        return made[rank]

    return [(member.node, lambda rank=member.rank: records(rank)) for member in cohort]  # type: ignore[misc]
