"""SiteBudget: the ledger of one site, and the plans that it books for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from safetensors.numpy import load, save

from client.private import PrivateSteps
from client.site import LedgerSummary
from client.store import NodeStore
from privacy.client_clipping import clipper_for
from privacy.ftrl.correlated import CorrelatedNoise
from privacy.ledger import Ledger, book
from privacy.noise.gaussian import add_gaussian_
from privacy.plan import PrivacyPlan
from privacy.sampling import sampler_for
from privacy.terms import Mechanism, Unit
from umbel.adapter import AdapterSpec, Vector
from umbel.config import RunConfig
from umbel.errors import LedgerError

_NOISE = "noise"


@lru_cache(maxsize=256)
def example_plan(config: RunConfig, examples: int) -> PrivacyPlan | None:
    """The plan of a client with this many examples, or None; calibrated once a process for each number."""
    if config.privacy.unit != "example":
        return None
    return PrivacyPlan.from_config(config, examples=examples)


@lru_cache(maxsize=8)
def update_plan(config: RunConfig) -> PrivacyPlan | None:
    """The plan of a client that noises its own update, or None."""
    if config.privacy.unit != "client" or config.privacy.place != "update":
        return None
    return PrivacyPlan.from_config(config)


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

    def reserve(self, plan: PrivacyPlan, round_number: int) -> int:
        """Books one round of the plan, synced to disk before this returns.

        Returns:
            The line's number, for :meth:`unless_released`; 0 for correlated noise, whose one line pays for all rounds
            of the run and is never given back.

        Raises:
            BudgetExceeded: the round would cost more than what is left; nothing may be released.
            LedgerError: the ledger cannot be trusted.
        """
        with Ledger.open(self._path) as ledger:
            line = book(ledger, plan, dataset=self._dataset, run=self._run, round=round_number)
        return 0 if plan.mechanism is Mechanism.BANDED else line

    @contextmanager
    def unless_released(self, line: int) -> Iterator[None]:
        """Within it nothing that comes of the noise is stored or sent; an error that ends it gives ``line`` back.

        The booking is that of one attempt alone, and what the attempt had made ends with it, so nobody learns what was
        paid for. A killed process gives nothing back: it cannot know how far it came.

        Args:
            line: of :meth:`reserve`.
        """
        try:
            yield
        except Exception:
            with suppress(LedgerError), Ledger.open(self._path, create=False) as ledger:  # or else it stays spent
                ledger.settle(line, "void")
            raise

    def reserve_sum(self, plan: PrivacyPlan, round_number: int, once: str) -> None:
        """Books one sum that this site helps to unmask; the same ``once`` is booked once only.

        Raises:
            BudgetExceeded, LedgerError: as :meth:`reserve`.
        """
        with Ledger.open(self._path) as ledger:
            ledger.reserve(
                plan.events(1), dataset=self._dataset, unit=plan.unit, run=self._run, round=round_number, once=once
            )

    def summary(self, delta: float, unit: Unit) -> LedgerSummary:
        """What has been spent of this data set."""
        if not self._path.exists():
            return LedgerSummary(0.0, delta, 0)
        with Ledger.open(self._path) as ledger:
            events = ledger.events(dataset=self._dataset, unit=unit)
            return LedgerSummary(ledger.spent(delta, dataset=self._dataset, unit=unit), delta, len(events))


def private_steps(
    plan: PrivacyPlan, config: RunConfig, *, owner: str, values: int, round_number: int, store: NodeStore
) -> tuple[PrivateSteps, Callable[[], None]]:
    """The steps of one round under the plan, and what must be called before the update leaves.

    Args:
        plan: of this client.
        config: of the run.
        owner: run and site, which fix the order of cyclic epochs.
        values: size of the noised vector.
        round_number: 1-based.
        store: keeps the memory of correlated noise at the site.
    """
    done = (round_number - 1) * plan.steps_per_round
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
        sampler=sampler_for(plan, key=owner.encode(), start=done),
        add_noise=add_noise,
        microbatch=config.train.microbatch,
    )
    return steps, settle


def noised_update(plan: PrivacyPlan, config: RunConfig, update: Vector, spec: AdapterSpec) -> Vector:
    """A whole update, clipped and noised at the client (local model). Book the plan before.

    Args:
        plan: of the client unit at the place ``update``.
        config: of the run.
        update: laid out by ``spec``.
        spec: of the upload.

    Raises:
        PrivacyError: a value is not finite.
    """
    clipper = clipper_for(plan, config.privacy, spec)
    result = clipper.clip(update).vector.copy()
    add_gaussian_(result, clipper.noise_std(plan))
    return result
