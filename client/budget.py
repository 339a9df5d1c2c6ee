"""SiteBudget: the ledger of one site, and the plan it books for a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from safetensors.numpy import load, save

from client.private import PrivateSteps
from client.site import LedgerSummary
from client.store import NodeStore
from privacy.ftrl.correlated import CorrelatedNoise
from privacy.ledger import Budget, Ledger
from privacy.noise.gaussian import add_gaussian_
from privacy.plan import PrivacyPlan
from privacy.sampling import (
    CyclicSampler,
    FixedSizeSampler,
    FullSampler,
    IndexSampler,
    PoissonSampler,
    ShuffledSampler,
)
from privacy.terms import Mechanism, Sampler, Unit
from umbel.adapter import Vector
from umbel.config import RunConfig

_NOISE = "noise"


@lru_cache(maxsize=256)
def example_plan(config: RunConfig, examples: int) -> PrivacyPlan | None:
    """The plan of a client with this many examples; calibrated once a process for each number."""
    if config.privacy.unit != "example":
        return None
    return PrivacyPlan.from_config(config, examples=examples)


class SiteBudget:
    """Books every release of a site before it happens.

    Args:
        path: of the ledger.
        dataset: id of the data, stable over runs.
        run: id of the run.
    """

    def __init__(self, path: Path, *, dataset: str, run: str) -> None:
        self._path = path
        self._dataset = dataset
        self._run = run

    def reserve(self, plan: PrivacyPlan, round_number: int) -> None:
        """Books one round of the plan, synced to disk before this returns.

        Raises:
            BudgetExceeded: the round would cost more than what is left; nothing may be released.
            LedgerError: the ledger cannot be trusted.
        """
        banded = plan.mechanism is Mechanism.BANDED
        with Ledger.open(self._path) as ledger:
            ledger.reserve(
                plan.events(plan.steps if banded else plan.steps_per_round),
                dataset=self._dataset,
                unit=Unit.EXAMPLE,
                run=self._run,
                round=round_number,
                budget=Budget(plan.epsilon_budget, plan.delta),
                once=f"{self._run}/noise" if banded else "",
            )

    def summary(self, delta: float) -> LedgerSummary:
        """What has been spent of this data set."""
        if not self._path.exists():
            return LedgerSummary(0.0, delta, 0)
        with Ledger.open(self._path) as ledger:
            events = ledger.events(dataset=self._dataset, unit=Unit.EXAMPLE)
            return LedgerSummary(ledger.spent(delta, dataset=self._dataset, unit=Unit.EXAMPLE), delta, len(events))


def private_steps(
    plan: PrivacyPlan, config: RunConfig, *, examples: int, values: int, round_number: int, store: NodeStore
) -> tuple[PrivateSteps, Callable[[], None]]:
    """The steps of one round under the plan, and what must be called before the update leaves.

    Args:
        plan: of this client.
        config: of the run.
        examples: how many the client holds.
        values: size of the noised vector.
        round_number: 1-based.
        store: keeps the memory of correlated noise at the site.
    """
    done = (round_number - 1) * plan.steps_per_round
    sampler = _sampler(plan, examples, done, store)
    correlated: CorrelatedNoise | None = None
    if plan.mechanism is Mechanism.BANDED:
        state = store.get(_NOISE)
        correlated = CorrelatedNoise(plan.matrix, values, plan.noise_std())
        if state is not None:
            correlated.restore(load(state))

    def add_noise(vector: Vector) -> None:
        if correlated is not None:
            correlated.add_(vector)
        else:
            add_gaussian_(vector, plan.noise_std())

    def settle() -> None:
        if correlated is not None:
            store.put(_NOISE, save(correlated.state()))

    steps = PrivateSteps(
        plan,
        engine=config.privacy.engine,
        sampler=sampler,
        add_noise=add_noise,
        microbatch=config.train.microbatch,
    )
    return steps, settle


def _sampler(plan: PrivacyPlan, examples: int, done: int, store: NodeStore) -> IndexSampler:
    if plan.sampler is Sampler.POISSON:
        return PoissonSampler(examples, plan.sampling_rate)
    if plan.sampler is Sampler.FIXED_SIZE:
        return FixedSizeSampler(examples, round(plan.sampling_rate * examples))
    if plan.sampler is Sampler.SHUFFLED:
        return ShuffledSampler(examples, plan.period)
    if plan.sampler is Sampler.CYCLIC:
        key = store.get("order")
        if key is None:
            key = os.urandom(32)
            store.put("order", key)
        return CyclicSampler(examples, plan.period, key, start=done)
    return FullSampler(examples)
