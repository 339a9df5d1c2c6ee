"""Which combinations have a guarantee that can be stated; every other one is refused with the way out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.terms import Clipping, Mechanism, Place, Relation, Sampler, Unit
from umbel.errors import PlanError

if TYPE_CHECKING:
    from privacy.plan.plan import PrivacyPlan


def check(plan: PrivacyPlan) -> None:
    """Raises PlanError for a plan whose guarantee cannot be stated."""
    _numbers(plan)
    _place(plan)
    _sampler(plan)
    _mechanism(plan)


def _numbers(plan: PrivacyPlan) -> None:
    for name, value in (
        ("noise multiplier", plan.noise_multiplier),
        ("clipping norm", plan.clipping_norm),
        ("epsilon budget", plan.epsilon_budget),
    ):
        if not (math.isfinite(value) and value > 0):
            raise PlanError(f"The {name} is {value}, expected a finite number above 0: correct it in the plan.")
    if not 0 < plan.delta < 1:
        raise PlanError(f"delta is {plan.delta}, expected above 0 and below 1: use at most one over {_many(plan)}.")
    if plan.steps < 1 or plan.steps_per_round < 1:
        raise PlanError(
            f"A plan of {plan.steps} steps, {plan.steps_per_round} a round, releases nothing: expected at least 1."
        )
    if not 0 < plan.sampling_rate <= 1:
        raise PlanError(
            f"The sampling rate is {plan.sampling_rate:g}, expected above 0 and at most 1: lower the batch or cohort "
            f"size to at most the number of {_many(plan)}."
        )
    if plan.population is not None and plan.population < 1:
        raise PlanError(f"A plan over {plan.population} {_many(plan)} protects nobody: expected at least 1.")
    if plan.population is not None and plan.delta > 1 / plan.population:
        raise PlanError(
            f"delta {plan.delta:g} is above one over the {plan.population} {_many(plan)}, so publishing one at random "
            f"would pass: set privacy.delta to at most {1 / plan.population:.2g}."
        )


def _place(plan: PrivacyPlan) -> None:
    if plan.unit is Unit.EXAMPLE and plan.place is not Place.STEP:
        raise PlanError(
            f"Noise at the place {plan.place.value} cannot protect single examples, whose gradients are clipped and "
            "noised inside each step: set privacy.place=step, or privacy.unit=client."
        )
    if plan.unit is Unit.CLIENT and plan.place is Place.STEP:
        raise PlanError(
            "Noise in the steps cannot protect a whole client, whose update is clipped once: set "
            "privacy.place=coordinator, secagg or update, or privacy.unit=example."
        )
    if plan.place is Place.UPDATE and plan.relation is not Relation.REPLACE_ONE:
        raise PlanError(
            "A client that noises its own update shows the coordinator that it takes part, so add-remove cannot be "
            "claimed: set privacy.relation=replace-one."
        )
    if plan.place in (Place.UPDATE, Place.SECAGG) and plan.sampler is not Sampler.FULL:
        raise PlanError(
            f"With noise at the place {plan.place.value} the coordinator sees the cohort, so the sampler "
            f"{plan.sampler.value} amplifies nothing against it: set privacy.sampler=full."
        )
    if plan.unit is Unit.EXAMPLE and plan.clipping is not Clipping.FLAT:
        raise PlanError(
            f"Clipping {plan.clipping.value} is for whole updates, but the unit is one example: set "
            "privacy.clipping=flat."
        )
    if plan.clipping is Clipping.ADAPTIVE and plan.place is not Place.COORDINATOR:
        raise PlanError(
            f"Adaptive clipping needs the noised count of clipped updates at a trusted coordinator, but the place is "
            f"{plan.place.value}: set privacy.place=coordinator or privacy.clipping=flat."
        )


def _sampler(plan: PrivacyPlan) -> None:
    if plan.sampler is Sampler.FIXED_SIZE and plan.relation is not Relation.REPLACE_ONE:
        raise PlanError(
            "A fixed-size sample makes the number of units public, so add-remove cannot be claimed: set "
            "privacy.relation=replace-one or privacy.sampler=poisson."
        )
    if plan.unit is Unit.CLIENT and plan.sampler in (Sampler.SHUFFLED, Sampler.CYCLIC):
        raise PlanError(
            f"Cohorts are not drawn by the sampler {plan.sampler.value}: set privacy.sampler to poisson, fixed-size "
            "or full for the client unit."
        )
    if plan.sampler is Sampler.FULL and plan.sampling_rate < 1 and plan.unit is Unit.EXAMPLE:
        raise PlanError(
            f"The sampler full takes every example in every step, but the batch is {plan.sampling_rate:.3g} of the "
            "data: set privacy.sampler to poisson or shuffled, or the batch size to the number of examples."
        )


def _mechanism(plan: PrivacyPlan) -> None:
    mechanism = plan.mechanism
    if (mechanism is Mechanism.BANDED) != (plan.sampler is Sampler.CYCLIC):
        raise PlanError(
            f"The mechanism {mechanism.value} and the sampler {plan.sampler.value} do not fit: banded noise needs "
            "participations a fixed number of steps apart, so set privacy.mechanism=banded together with "
            "privacy.sampler=cyclic, or neither."
        )
    if plan.bands < 1 or (mechanism is not Mechanism.BANDED and plan.bands != 1):
        raise PlanError(f"A plan has {plan.bands} bands with the mechanism {mechanism.value}: only banded has several.")
    discrete = mechanism in (Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN)
    if discrete != (plan.place is Place.SECAGG):
        raise PlanError(
            f"The mechanism {mechanism.value} does not fit the place {plan.place.value}: integer noise (skellam, "
            "discrete-gaussian) is for sums under secure aggregation and the only noise there; set "
            "privacy.mechanism=auto."
        )
    if discrete != (plan.encoding is not None):
        raise PlanError(
            f"A plan with the mechanism {mechanism.value} {'lacks' if discrete else 'has'} an encoding: integer noise, "
            "and only that, needs the dimension and scale with which secure aggregation turns updates into integers."
        )


def _many(plan: PrivacyPlan) -> str:
    return "examples" if plan.unit is Unit.EXAMPLE else "clients"
