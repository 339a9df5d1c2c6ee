"""The guarantee in one sentence, for reports, model cards and the command line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.terms import Mechanism, Place, Relation, Sampler, Unit

if TYPE_CHECKING:
    from privacy.plan.plan import PrivacyPlan

_AGAINST = {
    Place.STEP: "against everyone outside the client",
    Place.UPDATE: "against everyone outside the client, the coordinator included",
    Place.COORDINATOR: "against everyone who sees the released adapters, but not against the coordinator",
    Place.SECAGG: "against everyone, the coordinator included, while enough clients of a cohort are honest",
}


def statement(plan: PrivacyPlan, epsilon: float) -> str:
    """The plan's guarantee at ``epsilon``, with unit, relation, sampling assumption and adversary."""
    unit = "one training example" if plan.unit is Unit.EXAMPLE else "one client with all its data"
    relation = (
        f"adding or removing {unit}"
        if plan.relation is Relation.ADD_REMOVE
        else f"replacing {unit} by another (their number is public)"
    )
    level = "example-level" if plan.unit is Unit.EXAMPLE else "client-level"
    bound = "no finite epsilon" if math.isinf(epsilon) else f"({rounded_up(epsilon)}, {plan.delta:g})"
    size = (
        f"; the number of examples ({plan.population}) is taken as public"
        if plan.unit is Unit.EXAMPLE and plan.population is not None
        else ""
    )
    return f"{bound} {level} differential privacy for {relation}, {_assumption(plan)}, {_AGAINST[plan.place]}{size}."


def _assumption(plan: PrivacyPlan) -> str:
    what = "batches" if plan.unit is Unit.EXAMPLE else "cohorts"
    if plan.sampler is Sampler.POISSON:
        return f"assuming {what} drawn by secret Poisson sampling at rate {plan.sampling_rate:.4g}"
    if plan.sampler is Sampler.FIXED_SIZE:
        return f"assuming {what} of fixed size drawn secretly and uniformly at rate {plan.sampling_rate:.4g}"
    if plan.mechanism is Mechanism.BANDED:
        return f"without amplification, by correlated noise with participations {plan.period} steps apart"
    if plan.sampler is Sampler.SHUFFLED:
        return "without amplification by sampling, each example once an epoch"
    return "without amplification by sampling"


def rounded_up(epsilon: float) -> str:
    """Epsilon with two decimals, rounded up: a report must not understate it."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}"
