"""What a site shows its own Prometheus: its rounds, time, bytes, refusals and what is left of its budgets.

These figures are about this site alone and stay with it: they are served on the site's own address, never sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from client.site import LedgerSummary, Site
from privacy.ledger import Ledger
from umbel.errors import UmbelError
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

T = TypeVar("T")
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, float("inf"))
_DELTA = 1e-5  # where spent epsilon is stated for data sets without a budget of their own


class SiteMetrics:
    """The figures of one site.

    Args:
        registry: to which they are added; each site of a process needs its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._asked = Counter("umbel_site_requests", "What the site was asked.", ["kind"], registry=registry)
        self._refused = Counter(
            "umbel_site_refusals", "What it refused, by exit code.", ["kind", "code"], registry=registry
        )
        self._seconds = Histogram(
            "umbel_site_request_seconds", "Time of an answer.", ["kind"], registry=registry, buckets=_SECONDS
        )
        self._step = Histogram(
            "umbel_site_step_seconds", "Time of a round over its steps.", registry=registry, buckets=_SECONDS
        )
        self._bytes = Counter(
            "umbel_site_bytes", "Bytes of vectors and protocol messages.", ["direction"], registry=registry
        )
        self._round = Gauge("umbel_site_round", "Newest round that was trained.", registry=registry)

    def watch(self, ledger: Path) -> None:
        """Also shows what the ledger at this path says; there need not be one yet."""
        self.registry.register(LedgerCollector(ledger))

    def measured(self, kind: str, work: Callable[[], T]) -> T:
        """Does the work, and counts it, its time and its refusal."""
        started = time.perf_counter()
        self._asked.labels(kind).inc()
        try:
            return work()
        except UmbelError as error:
            self._refused.labels(kind, str(error.exit_code)).inc()
            raise
        finally:
            self._seconds.labels(kind).observe(time.perf_counter() - started)

    def trained(self, round_number: int, seconds: float, steps: int) -> None:
        """Notes a round of training; ``steps`` 0 leaves the time of a step out."""
        self._round.set(round_number)
        if steps > 0:
            self._step.observe(seconds / steps)

    def received(self, size: int) -> None:
        """Counts bytes that came in."""
        self._bytes.labels("down").inc(size)

    def sent(self, size: int) -> None:
        """Counts bytes that went out."""
        self._bytes.labels("up").inc(size)


class MeasuredSite(Site):
    """A site whose every answer is measured; what it answers stays the same.

    Args:
        inner: does the work.
        metrics: takes the figures.
        steps: local steps of one round, for the time of one step; 0 where a round is counted otherwise.
    """

    def __init__(self, inner: Site, metrics: SiteMetrics, steps: int = 0) -> None:
        self._inner = inner
        self._metrics = metrics
        self._steps = steps

    def describe(self) -> Description:
        """See Site."""
        return self._metrics.measured("describe", self._inner.describe)

    def train(self, order: TrainOrder) -> TrainReply | SecAggStep:
        """See Site."""
        self._metrics.received(order.bound.nbytes + len(order.secagg or b""))
        started = time.perf_counter()
        reply = self._metrics.measured("train", lambda: self._inner.train(order))
        self._metrics.trained(order.round, time.perf_counter() - started, order.amount or self._steps)
        self._metrics.sent(len(reply.payload) if isinstance(reply, SecAggStep) else reply.update.nbytes)
        return reply

    def secagg(self, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """See Site."""
        self._metrics.received(len(step.payload))
        reply = self._metrics.measured(stage.value.removeprefix("query."), lambda: self._inner.secagg(stage, step))
        self._metrics.sent(len(reply.payload))
        return reply

    def evaluate(self, order: EvaluateOrder) -> dict[str, float]:
        """See Site."""
        self._metrics.received(order.adapter.nbytes)
        return self._metrics.measured("evaluate", lambda: self._inner.evaluate(order))

    def ledger(self) -> LedgerSummary:
        """See Site."""
        return self._metrics.measured("ledger", self._inner.ledger)


class LedgerCollector(Collector):
    """Epsilon spent and left by data set, as the ledger has it when asked.

    A ledger that cannot be trusted shows as ``umbel_site_ledger_trusted 0`` and nothing else. An unchanged ledger is
    not composed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._head = ""
        self._found: list[Metric] = []

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Reads the ledger, where there is one."""
        trusted = 1
        if self._path.is_file():
            try:
                with Ledger.open(self._path, create=False) as ledger:
                    if ledger.head != self._head:
                        self._found, self._head = _spent(ledger), ledger.head
            except UmbelError:
                trusted, self._head, self._found = 0, "", []
        yield GaugeMetricFamily("umbel_site_ledger_trusted", "Whether the ledger reads and verifies.", value=trusted)
        yield from self._found


def _spent(ledger: Ledger) -> list[Metric]:
    labels = ["dataset", "unit"]
    spent = GaugeMetricFamily("umbel_site_epsilon_spent", "Epsilon spent, at umbel_site_delta.", labels=labels)
    left = GaugeMetricFamily("umbel_site_epsilon_left", "Epsilon left, where the data set has a budget.", labels=labels)
    deltas = GaugeMetricFamily("umbel_site_delta", "Where epsilon is stated.", labels=labels)
    events = GaugeMetricFamily("umbel_site_ledger_events", "Events booked and not voided.", labels=labels)
    for dataset, unit in ledger.datasets():
        budget = ledger.budget(dataset=dataset, unit=unit)
        delta = _DELTA if budget is None else budget.delta
        used = ledger.spent(delta, dataset=dataset, unit=unit)
        where = [dataset, unit.value]
        spent.add_metric(where, used)
        deltas.add_metric(where, delta)
        events.add_metric(where, len(ledger.events(dataset=dataset, unit=unit)))
        if budget is not None:
            left.add_metric(where, max(0.0, budget.epsilon - used))
    return [spent, left, deltas, events]
