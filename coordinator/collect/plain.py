"""PlainCollector: every update is visible to the coordinator, and summed as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import RecordDict

from coordinator.accumulator import ExactAccumulator
from coordinator.central_dp import CentralMechanism
from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.collect.fold import Fold, FoldPlan
from coordinator.collect.uploads import PlainUpload, read_upload
from coordinator.courier import Courier, Reply
from coordinator.population import Participant
from strategies.base import Upload
from umbel import wire
from umbel.errors import AdapterError, PrivacyError, WireError
from umbel.wire import MessageType, TrainOrder

_WEIGHT_UNIT = 4096.0


class PlainCollector(Collector):
    """Sums updates in order of arrival; the sum does not depend on that order (see ExactAccumulator).

    Args:
        courier: how messages travel.
        timeout: seconds for a round.
        by_examples: weigh by the client's number of examples instead of uniformly.
        keep_uploads: hold single uploads for a strategy that is not linear; memory then grows with the cohort.
        central: clips each update and releases a noised sum, for a trusted coordinator (client-level privacy).
        quantized: updates come as a quantizer's bytes.
    """

    def __init__(
        self,
        courier: Courier,
        *,
        timeout: float,
        by_examples: bool = False,
        keep_uploads: bool = False,
        central: CentralMechanism | None = None,
        quantized: bool = False,
    ) -> None:
        self._courier = courier
        self._timeout = timeout
        self._by_examples = by_examples
        self._keep = keep_uploads
        self._central = central
        self._quantized = quantized

    def collect(self, cohort: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """See Collector. A reply with a wrong hash, length, value or weight is counted and never averaged."""
        return self.collect_groups([cohort], broadcast)[0]

    def collect_groups(self, groups: Sequence[Sequence[Participant]], broadcast: Broadcast) -> list[Collected]:
        """See Collector: all groups train at the same time."""
        if self._courier.folds and not self._keep and (self._central is None or broadcast.pooled):
            return [self._folded(group, broadcast) for group in groups]
        sums = [self._sum(group, broadcast) for group in groups]
        of = {member.node: (member, sums[index]) for index, group in enumerate(groups) for member in group}
        orders = []
        for index, group in enumerate(groups):
            orders += orders_for(group, broadcast, sums[index].collected)
        asked = self._courier.ask(
            MessageType.TRAIN, orders, timeout=self._timeout * broadcast.patience, group=str(broadcast.round)
        )
        for reply in asked:
            member, of_group = of[reply.node]
            of_group.take(reply, member)
        return [of_group.result() for of_group in sums]

    def _folded(self, group: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """The sums of parts of the group, which the grid made where the clients run; the same bits."""
        collected = Collected()
        plan = FoldPlan.of(group, broadcast, by_examples=self._by_examples, quantized=self._quantized)
        orders, whole = orders_for(group, broadcast, collected), Fold(plan)
        name = str(broadcast.round)
        for part in self._courier.fold(
            MessageType.TRAIN, orders, plan, timeout=self._timeout * broadcast.patience, group=name
        ):
            whole.merge(part)
        return whole.fill(collected, len(group))

    def _sum(self, group: Sequence[Participant], broadcast: Broadcast) -> _Sum:
        return _Sum(
            group,
            broadcast,
            central=None if broadcast.pooled else self._central,
            keep=self._keep and not broadcast.pooled,
            by_examples=self._by_examples,
            quantized=self._quantized,
        )


class _Sum:
    """The sum of one group, reply by reply."""

    def __init__(
        self,
        group: Sequence[Participant],
        broadcast: Broadcast,
        *,
        central: CentralMechanism | None,
        keep: bool,
        by_examples: bool,
        quantized: bool,
    ) -> None:
        self.collected = Collected(missing=len(group))
        self._broadcast = broadcast
        self._central = central
        self._keep = keep
        self._by_examples = by_examples
        self._quantized = quantized
        unit = _WEIGHT_UNIT if by_examples else 1.0
        self._accumulator = ExactAccumulator(0 if keep else broadcast.upload_spec.size, unit=unit)
        self._kept: dict[str, Upload] = {}
        self._seen = self._loss = 0.0

    def take(self, reply: Reply, member: Participant) -> None:
        collected = self.collected
        collected.missing -= 1
        if reply.records is None:
            collected.reject(reply.reason)
            return
        collected.bytes_up += wire.payload_bytes(reply.records)
        try:
            upload = read_upload(
                reply.records,
                member.rank,
                self._broadcast,
                by_examples=self._by_examples,
                quantized=self._quantized,
            )
            self._use(upload, member)
        except (AdapterError, PrivacyError, WireError) as error:
            collected.reject(str(error))
            return
        collected.survivors.append(member.site)
        metrics = upload.metrics
        if "loss" in metrics:  # a private client does not tell
            self._seen += metrics.get("seen", 0.0)
            self._loss += metrics["loss"] * metrics.get("seen", 0.0)
        for key in ("examples", "seen", "seconds"):
            collected.metrics[key] = collected.metrics.get(key, 0.0) + metrics.get(key, 0.0)

    def _use(self, upload: PlainUpload, member: Participant) -> None:
        if self._keep:
            self._kept[member.site] = Upload(upload.vector, upload.weight, member.rank)
        elif self._central is not None:
            self._accumulator.add(self._central.clip(upload.vector), upload.weight)
        else:
            self._accumulator.add(upload.vector, upload.weight)

    def result(self) -> Collected:
        collected = self.collected
        collected.survivors.sort()
        # In order of their names, so that a rule that sums them gives the same bits whoever answered first.
        collected.uploads = [self._kept[site] for site in sorted(self._kept)]
        if self._seen:
            collected.metrics["loss"] = self._loss / self._seen
        if self._central is not None:
            collected.mean, collected.noised = self._central.release(self._accumulator), True
            collected.metrics.pop("loss", None)  # the noise does not cover it
        elif self._accumulator.count and not self._keep:
            collected.mean = self._accumulator.mean()
        return collected


def orders_for(
    cohort: Sequence[Participant], broadcast: Broadcast, collected: Collected
) -> list[tuple[int, Callable[[], RecordDict]]]:
    """One order a member; those of one rank share their records, so that one copy is in memory.

    What is sent is added to ``collected.bytes_down`` when it is sent.
    """
    made: dict[int, RecordDict] = {}
    sizes: dict[int, int] = {}

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
                    pass_number=broadcast.pass_number,
                )
            )
            sizes[rank] = wire.payload_bytes(made[rank])
        collected.bytes_down += sizes[rank]
        return made[rank]

    return [(member.node, lambda rank=member.rank: records(rank)) for member in cohort]  # type: ignore[misc]
