"""GroupedCollector: random groups, each summed by itself, for a robust rule that compares the sums.

Under secure aggregation nobody sees one client's update, so a corrupt one cannot be told from the others; but the
sum of the group that it is in can be told from the sums of the other groups (Velicheti, Xia and Koyejo 2021).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from coordinator.collect.base import Broadcast, Collected, Collector
from coordinator.population import Participant
from strategies.base import Upload
from strategies.robust.robust import assign_groups

logger = logging.getLogger("flwr.umbel")


class GroupedCollector(Collector):
    """Divides each cohort into groups at random and gives one Upload a group: the group's mean.

    A group that is lost (too few survivors, or under secure aggregation too few for its threshold) is left out and
    logged; the rule then works on the groups that are left, or refuses when they are too few. What one client is
    hidden in is its group, of which secure aggregation demands its own minimum.

    Args:
        inner: collects the groups; plain or secure.
        groups: how many.
        seed: fixes the groups of every round, so that a resumed run forms the same ones.
    """

    def __init__(self, inner: Collector, groups: int, *, seed: int) -> None:
        self._inner = inner
        self._groups = groups
        self._seed = seed

    def describe(self, cohort: int, length: int) -> dict[str, Any] | None:
        """See Collector: of the smallest group."""
        found = self._inner.describe(cohort // self._groups, length)
        return None if found is None else {**found, "groups": self._groups}

    def collect(self, cohort: Sequence[Participant], broadcast: Broadcast) -> Collected:
        """See Collector.

        Raises:
            StrategyError: the cohort has fewer members than there are groups.
        """
        if broadcast.pooled:
            return self._inner.collect(cohort, broadcast)
        members = {member.site: member for member in cohort}
        names = assign_groups(list(members), self._groups, (self._seed, broadcast.round))
        parts = self._inner.collect_groups([[members[name] for name in group] for group in names], broadcast)
        for group, part in zip(names, parts, strict=True):
            if part.mean is None:
                logger.warning("Round %d: a group of %d clients was lost", broadcast.round, len(group))
        return merged(parts)


def merged(parts: Sequence[Collected]) -> Collected:
    """One round out of its groups: sums of counts, the groups' means as uploads.

    An upload's weight is its group's number of survivors, its rank 0.
    """
    whole = Collected()
    seen = loss = 0.0
    for part in parts:
        if part.mean is not None:
            whole.uploads.append(Upload(part.mean, float(len(part.survivors)), 0))
        whole.survivors += part.survivors
        for reason, count in part.rejected.items():
            whole.rejected[reason] = whole.rejected.get(reason, 0) + count
        whole.missing += part.missing
        whole.bytes_up += part.bytes_up
        whole.bytes_down += part.bytes_down
        for key, value in part.metrics.items():
            if key != "loss":
                whole.metrics[key] = whole.metrics.get(key, 0.0) + value
        if "loss" in part.metrics:
            loss += part.metrics["loss"] * part.metrics.get("seen", 0.0)
            seen += part.metrics.get("seen", 0.0)
    if seen:
        whole.metrics["loss"] = loss / seen
    whole.survivors.sort()
    whole.secagg = _stages([part.secagg for part in parts if part.secagg is not None], len(parts))
    return whole


def _stages(reports: Sequence[dict[str, Any]], groups: int) -> dict[str, Any] | None:
    """The groups' reports as one: stages ran side by side, so their clients and bytes add up and their times do not."""
    if not reports:
        return None
    stages = {
        name: {
            "alive": sum(report["stages"][name]["alive"] for report in reports),
            "seconds": max(report["stages"][name]["seconds"] for report in reports),
            "bytes": sum(report["stages"][name]["bytes"] for report in reports),
        }
        for name in reports[0]["stages"]
    }
    least = min(reports, key=lambda report: report["cohort"])
    late = sum(report["late"] for report in reports)
    return {**least, "stages": stages, "late": late, "groups": groups, "lost": groups - len(reports)}
