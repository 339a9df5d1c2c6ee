"""From the configuration of a run to the plan of one client, or of the coordinator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.accounting import LatticeEncoding
from privacy.plan import remembered
from privacy.plan.plan import PrivacyPlan
from privacy.terms import Clipping, Mechanism, Place, Relation, Sampler, Unit
from umbel.errors import PlanError

if TYPE_CHECKING:
    from umbel.config import RunConfig

_COHORTS = {"poisson": Sampler.POISSON, "fixed": Sampler.FIXED_SIZE, "all": Sampler.FULL}


def plan_for(
    config: RunConfig, *, examples: int | None = None, encoding: LatticeEncoding | None = None
) -> PrivacyPlan | None:
    """The plan that a configuration promises, with its noise calibrated or checked against the budget.

    Args:
        config: the run.
        examples: public number of training examples of this client; needed for the example unit, where each
            client has its own sampling rate and its own noise multiplier for the same epsilon.
        encoding: how updates become integers; needed for the client unit under secure aggregation.

    Returns:
        None for ``privacy.unit = "none"``.

    Raises:
        PlanError: the guarantee cannot be stated, or fixed noise would overspend the budget.
    """
    if config.privacy.unit == "none":
        return None
    plan = _example(config, examples) if config.privacy.unit == "example" else _client(config, encoding)
    if config.privacy.noise == "calibrate":
        return remembered.calibrated(plan)
    spent = plan.epsilon()
    if spent > plan.epsilon_budget:
        raise PlanError(
            f"The noise multiplier {plan.noise_multiplier:g} spends epsilon {spent:.2f} over {plan.steps} steps, more "
            f"than the budget of {plan.epsilon_budget:g}: set privacy.noise=calibrate, or raise one of the two."
        )
    return plan


def _example(config: RunConfig, examples: int | None) -> PrivacyPlan:
    privacy, train = config.privacy, config.train
    if examples is None or examples < 1:
        raise PlanError(
            f"A plan for single examples was asked for with {examples} examples: give the client's public number of "
            "training examples, at least 1."
        )
    if train.batch_size > examples:
        raise PlanError(
            f"The sampling rate {train.batch_size}/{examples} is above 1: lower train.batch-size to at most the "
            "client's number of examples, or raise task.minimum."
        )
    per_round = train.amount if train.unit == "steps" else train.amount * math.ceil(examples / train.batch_size)
    mechanism = _mechanism(config)
    return PrivacyPlan(
        unit=Unit.EXAMPLE,
        relation=Relation(privacy.relation),
        sampler=Sampler(privacy.sampler),
        sampling_rate=train.batch_size / examples,
        steps=config.federation.rounds * per_round,
        clipping_norm=privacy.clipping_norm,
        noise_multiplier=privacy.noise_multiplier,
        place=Place(privacy.place),
        delta=privacy.delta,
        epsilon_budget=privacy.epsilon,
        mechanism=mechanism,
        clipping=Clipping(privacy.clipping),
        population=examples,
        steps_per_round=per_round,
        bands=privacy.bands if mechanism is Mechanism.BANDED else 1,
    )


def _client(config: RunConfig, encoding: LatticeEncoding | None) -> PrivacyPlan:
    privacy, federation = config.privacy, config.federation
    sampler, drawn = Sampler(privacy.sampler), _COHORTS[federation.cohort]
    if sampler.amplifies and sampler is not drawn:
        raise PlanError(
            f"privacy.sampler={privacy.sampler} claims amplification by sampling, but federation.cohort="
            f"{federation.cohort} does not draw cohorts so: set them alike, or privacy.sampler=full."
        )
    if federation.weights != "uniform":
        raise PlanError(
            "Weights by the number of examples reveal that number and unbalance the sensitivity: set "
            "federation.weights=uniform for the client unit."
        )
    if (privacy.place == "secagg") != config.secagg.enabled:
        raise PlanError(
            f"privacy.place={privacy.place} does not fit secagg.enabled={str(config.secagg.enabled).lower()}: noise is "
            "added jointly exactly when secure aggregation is on, so set both or neither."
        )
    return PrivacyPlan(
        unit=Unit.CLIENT,
        relation=Relation(privacy.relation),
        sampler=sampler,
        sampling_rate=federation.cohort_size / federation.clients if sampler.amplifies else 1.0,
        steps=federation.rounds,
        clipping_norm=privacy.clipping_norm,
        noise_multiplier=privacy.noise_multiplier,
        place=Place(privacy.place),
        delta=privacy.delta,
        epsilon_budget=privacy.epsilon,
        mechanism=_mechanism(config),
        clipping=Clipping(privacy.clipping),
        population=federation.clients,
        encoding=encoding,
    )


def _mechanism(config: RunConfig) -> Mechanism:
    privacy = config.privacy
    if privacy.mechanism != "auto":
        return Mechanism(privacy.mechanism)
    if privacy.place == "secagg":
        return Mechanism.SKELLAM
    return Mechanism.BANDED if privacy.sampler == "cyclic" else Mechanism.GAUSSIAN
