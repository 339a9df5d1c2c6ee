"""Epsilon of a list of events, adaptively composed.

dp-accounting's privacy loss distributions (Connect-the-Dots, pessimistic: Doroshenko et al. 2022) where
every event has one; Rényi divergences otherwise (conversion: Canonne et al. 2020, proposition 12). Both are
upper bounds on the true epsilon. Gaussian DP's central limit is never used: it is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from privacy.accounting.divergence import ORDERS, rdp
from privacy.accounting.event import Event, merged
from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError

COARSE, FINE = 1e-3, 1e-4
"""Discretisation of the privacy loss: ten times faster and within 0.004 up to some ten thousand releases."""
MANY = 20_000
HOPELESS = 150.0
"""Above this Rényi epsilon the privacy loss distribution is not worth its memory."""


def epsilon(events: Iterable[Event], delta: float, relation: Relation | None = None) -> float:
    """An upper bound on epsilon at ``delta`` for all ``events`` together, in any adaptive order.

    Args:
        events: what happened, on one data set; participations add up over events of one kind.
        delta: above 0 and below 1.
        relation: neighbouring relation of the answer; by default the events' own, and replace-one (the stronger)
            when they differ.

    Returns:
        0 for no events; infinity where no finite bound is known.

    Raises:
        PlanError: delta out of range, or fixed-size samples under add-remove.
    """
    _check(delta)
    return _epsilon(_aligned(events, relation), delta)


def epsilon_bound(events: Iterable[Event], delta: float, relation: Relation | None = None) -> float:
    """A quicker and looser upper bound than :func:`epsilon` (microseconds once a kind has been seen)."""
    _check(delta)
    return _epsilon_rdp(_aligned(events, relation), delta)


def _aligned(events: Iterable[Event], relation: Relation | None) -> tuple[Event, ...]:
    found = list(events)
    relations = {event.relation for event in found}
    if relation is None and relations:
        relation = relations.pop() if len(relations) == 1 else Relation.REPLACE_ONE
    return merged(event.under(relation) if relation else event for event in found)


def _check(delta: float) -> None:
    if not 0 < delta < 1:
        raise PlanError(f"A delta is {delta}, expected above 0 and below 1: use at most one over the number of units.")


def _unsampled(events: tuple[Event, ...]) -> tuple[Event, ...]:
    return merged(
        replace(event, sampler=Sampler.FULL, sampling_rate=1.0) if event.sampler is Sampler.POISSON else event
        for event in events
    )


def has_pld(event: Event) -> bool:
    """Whether dp-accounting has a privacy loss distribution for the event."""
    if event.mechanism not in (Mechanism.GAUSSIAN, Mechanism.BANDED):
        return False
    return event.sampler is not Sampler.FIXED_SIZE or event.sampling_rate == 1


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    loose = _epsilon_rdp(events, delta)
    if not all(has_pld(event) for event in events):
        return loose
    if any(event.sampling_rate < 1 and event.sampler is Sampler.POISSON for event in events):
        # Sampling never costs privacy, so the bound without it holds too; it is the tighter one near a rate of 1.
        loose = min(loose, _epsilon(_unsampled(events), delta))
    if loose > HOPELESS:
        return loose
    interval = COARSE if sum(event.participations for event in events) <= MANY else FINE
    total = None
    variance = 0.0
    for event in events:
        if event.sampling_rate == 1:
            # Gaussian releases of any multipliers compose to one Gaussian release, exactly.
            variance += event.participations / event.noise_multiplier**2
            continue
        part = _sampled(event.noise_multiplier, event.sampling_rate, event.relation, interval)
        part = part.self_compose(event.participations)
        total = part if total is None else total.compose(part)
    if variance:
        part = _gaussian(variance**-0.5, interval)
        total = part if total is None else total.compose(part)
    return min(loose, float(total.get_epsilon_for_delta(delta)))  # type: ignore[union-attr]


@lru_cache(maxsize=256)
def _sampled(noise_multiplier: float, q: float, relation: Relation, interval: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    replace_one = relation is Relation.REPLACE_ONE
    return pld.from_gaussian_mechanism(
        noise_multiplier,
        # dp-accounting moves the sum by one sensitivity each way under replace-one; ours is their sum.
        sensitivity=0.5 if replace_one else 1.0,
        sampling_prob=q,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.REPLACE_ONE if replace_one else NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


@lru_cache(maxsize=256)
def _gaussian(noise_multiplier: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(noise_multiplier, value_discretization_interval=interval)


def _epsilon_rdp(events: Sequence[Event], delta: float) -> float:
    if not events:
        return 0.0
    curve = np.zeros(len(ORDERS))
    for event in events:
        curve += event.participations * rdp(event.kind)
    orders = np.asarray(ORDERS)
    usable = np.isfinite(curve)
    if not usable.any():
        return math.inf
    converted = curve + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(converted[usable].min()))
