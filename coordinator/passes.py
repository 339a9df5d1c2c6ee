"""Later passes of a round: strategies that need a second upload of what was trained once (FedASK's two sketches).

A later pass asks those whose upload counted in the pass before. Where updates are visible, the pass averages whoever
of them answers, and ``federation.minimum`` must be met again; what the first pass gave (FedASK's basis) still comes
from all, so that the average of fewer is exact only where that basis holds everybody's factors.

Under secure aggregation a later pass must sum exactly the same clients: two sums that differ by one client would show
a sketch of that client's own update. A round whose clients could not all be kept is then lost, not repeated, for the
first sum is known already: nothing changes, and the next round trains anew. Every pass is a secure round in a fresh
context of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from coordinator.collect import Broadcast, Collected, Collector
from coordinator.population import Participant
from strategies.base import AdapterStrategy, StrategyState
from umbel.adapter import AdapterSpec

logger = logging.getLogger("flwr.umbel")


def later_passes(
    strategy: AdapterStrategy,
    spec: AdapterSpec,
    collector: Collector,
    cohort: Sequence[Participant],
    first: Collected,
    state: StrategyState,
    number: int,
    broadcast: Callable[[StrategyState, int], Broadcast],
    *,
    minimum: int,
) -> tuple[Collected, StrategyState]:
    """Plays passes 2 to ``strategy.passes`` of a round.

    Args:
        strategy: linear, with any number of passes.
        spec: the server's.
        collector: of the run.
        cohort: of the round.
        first: what the first pass brought.
        state: before the round.
        number: of the round.
        broadcast: what goes down in a pass, from the state and the pass's number.
        minimum: fewest survivors that go on to another pass.

    Returns:
        The round as it ended, with the last pass's mean and the costs of all, and the state that ``step`` takes. With
        a single pass, or too few survivors, these are ``first`` and ``state``.
    """
    collected, between = first, state
    for pass_number in range(2, strategy.passes + 1):
        if collected.mean is None or len(collected.survivors) < minimum:
            return collected, state
        between = strategy.between(spec, collected.mean, between, number, pass_number - 1)
        before = set(collected.survivors)
        members = [member for member in cohort if member.site in before]
        later = collector.collect(members, broadcast(between, pass_number))
        secure = collected.secagg is not None
        collected = _joined(collected, later, pass_number)
        if secure and later.mean is None:
            logger.warning(
                "Round %d is lost, nothing changes: pass %d could not sum the same %d clients as the first",
                number,
                pass_number,
                len(members),
            )
            collected.lost = True
            return collected, state
    return collected, between


def _joined(before: Collected, later: Collected, pass_number: int) -> Collected:
    """What the later pass brought, with what training told and the bytes, refusals and stages of the passes before."""
    rejected = dict(before.rejected)
    for reason, count in later.rejected.items():
        rejected[reason] = rejected.get(reason, 0) + count
    secagg = before.secagg
    if secagg is not None and later.secagg is not None:
        stages = {f"{name} {pass_number}": stage for name, stage in later.secagg["stages"].items()}
        secagg = {**secagg, "stages": {**secagg["stages"], **stages}, "late": secagg["late"] + later.secagg["late"]}
    return Collected(
        mean=later.mean,
        uploads=later.uploads,
        survivors=later.survivors,
        rejected=rejected,
        missing=before.missing + later.missing,
        metrics=before.metrics,
        bytes_up=before.bytes_up + later.bytes_up,
        bytes_down=before.bytes_down + later.bytes_down,
        secagg=secagg,
    )
