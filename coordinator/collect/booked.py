"""BookedCollector: pays for a round before it is released, and never releases it twice.

The noised mean is written to disk before anything is derived from it. A coordinator that is killed afterwards
goes on with that very mean; one that is killed before has released nothing, so that the booking is void.
Under secure aggregation the sum is released when the clients unmask it, so a booking is then never void.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import save

from coordinator.central_dp import CentralMechanism
from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.population import Participant
from privacy.ledger import Ledger, book
from privacy.plan import PrivacyPlan
from privacy.terms import Place
from umbel.files import write_atomic

_PENDING = "pending.safetensors"


class BookedCollector(Collector):
    """Wraps the collector of a client-level plan.

    Args:
        inner: collects and, at the place ``coordinator``, noises.
        plan: what is booked.
        ledger: file of the coordinator's ledger.
        folder: of the run's checkpoint.
        dataset: id of the population, stable over runs.
        run: id of the run.
        central: whose clipping norm must survive a restart, if it moves.
    """

    def __init__(
        self,
        inner: Collector,
        plan: PrivacyPlan,
        *,
        ledger: Path,
        folder: Path,
        dataset: str,
        run: str,
        central: CentralMechanism | None = None,
    ) -> None:
        self._inner = inner
        self._plan = plan
        self._path = ledger
        self._pending = folder / _PENDING
        self._dataset = dataset
        self._run = run
        self._central = central

    def describe(self, cohort: int, length: int) -> dict[str, Any] | None:
        """See Collector."""
        return self._inner.describe(cohort, length)

    def collect(self, cohort: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """See Collector.

        Raises:
            BudgetExceeded: the round would cost more than what is left; nobody was asked.
            LedgerError: the ledger cannot be trusted.
        """
        if broadcast.pooled:
            return self._inner.collect(cohort, broadcast)
        kept = self._recall(broadcast.round)
        if kept is not None:
            return kept
        with Ledger.open(self._path) as ledger:
            self._void_lost(ledger)
            line = book(ledger, self._plan, dataset=self._dataset, run=self._run, round=broadcast.round)
            collected = self._inner.collect(cohort, broadcast)
            if collected.mean is None:
                if self._plan.place is not Place.SECAGG:
                    ledger.settle(line, "void")
                return collected
            self._keep(broadcast.round, collected)
            ledger.settle(line, "released")
        return collected

    def _void_lost(self, ledger: Ledger) -> None:
        """Gives back what a killed process booked and cannot have released: it left no pending mean."""
        if self._plan.place is Place.SECAGG:
            return
        entries = ledger.entries()
        settled = {entry.about for entry in entries if entry.kind != "reserved"}
        for entry in entries:
            if entry.kind == "reserved" and entry.run == self._run and entry.number not in settled:
                ledger.settle(entry.number, "void" if entry.round != self._pending_round() else "released")

    def _pending_round(self) -> int:
        if not self._pending.exists():
            return 0
        with safe_open(self._pending, framework="np") as stream:
            return int(json.loads(stream.metadata()["umbel"])["round"])

    def _keep(self, number: int, collected: Collected) -> None:
        head = {
            "round": number,
            "survivors": collected.survivors,
            "rejected": collected.rejected,
            "missing": collected.missing,
            "metrics": collected.metrics,
            "bytes_up": collected.bytes_up,
            "bytes_down": collected.bytes_down,
            "secagg": collected.secagg,
            "noised": True,
            "norm": self._central.clipping_norm if self._central else None,
        }
        assert collected.mean is not None
        write_atomic(self._pending, save({"mean": collected.mean}, metadata={"umbel": json.dumps(head)}), mode=0o600)

    def _recall(self, number: int) -> Collected | None:
        """The mean that was released for this round already; also restores a moving clipping norm."""
        if not self._pending.exists():
            return None
        with safe_open(self._pending, framework="np") as stream:
            head = json.loads(stream.metadata()["umbel"])
            if self._central is not None and head["norm"] is not None and head["round"] in (number, number - 1):
                self._central.clipping_norm = float(head["norm"])
            if head["round"] != number:
                return None
            mean = stream.get_tensor("mean")
        fields = {key: head[key] for key in ("survivors", "rejected", "missing", "metrics", "bytes_up", "bytes_down")}
        return Collected(mean=mean, secagg=head["secagg"], noised=True, **fields)
