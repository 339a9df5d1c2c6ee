"""The frozen plan that couples sampling, clipping, noise and accounting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.accounting import Event, LatticeEncoding, calibrate, epsilon
from privacy.ftrl.matrix import BandedMatrix, optimised
from privacy.plan import rules
from privacy.plan.statement import statement
from privacy.terms import Clipping, Mechanism, Place, Relation, Sampler, Unit
from umbel.errors import PlanError

if TYPE_CHECKING:
    from umbel.config import RunConfig


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What is promised. Only plans whose guarantee can be stated construct.

    Attributes:
        unit: whose presence is hidden.
        relation: which data sets are neighbours.
        sampler: how the units of one release are chosen.
        sampling_rate: public expected batch over public number of examples of *this* client, or expected cohort
            over clients; above 0, at most 1. For shuffled and cyclic epochs it fixes the steps of an epoch; for
            the sampler full nothing is amplified whatever it is.
        steps: planned releases: optimizer steps (example) or rounds (client).
        clipping_norm: C, largest L2 norm of one unit's contribution.
        noise_multiplier: standard deviation of the sum's noise over :meth:`sensitivity` (over that times the
            matrix sensitivity for banded noise).
        place: where noise is added.
        delta: of the guarantee; at most one over ``population``.
        epsilon_budget: what may be spent at most.
        mechanism: the noise.
        clipping: how whole updates are bounded.
        population: public number of examples of this client, or of clients; None where it is not known yet.
        steps_per_round: steps between two uploads; a shuffled epoch starts afresh with each round.
        bands: of banded noise.
        encoding: how updates become integers under secure aggregation.

    Raises:
        PlanError: the guarantee cannot be stated; the message says why and the way out.
    """

    unit: Unit
    relation: Relation
    sampler: Sampler
    sampling_rate: float
    steps: int
    clipping_norm: float
    noise_multiplier: float
    place: Place
    delta: float
    epsilon_budget: float
    mechanism: Mechanism = Mechanism.GAUSSIAN
    clipping: Clipping = Clipping.FLAT
    population: int | None = None
    steps_per_round: int = 1
    bands: int = 1
    encoding: LatticeEncoding | None = None

    def __post_init__(self) -> None:
        rules.check(self)

    @classmethod
    def from_config(
        cls, config: RunConfig, *, examples: int | None = None, encoding: LatticeEncoding | None = None
    ) -> PrivacyPlan | None:
        """See :func:`privacy.plan.plan_for`."""
        from privacy.plan.build import plan_for

        return plan_for(config, examples=examples, encoding=encoding)

    def sensitivity(self, relation: Relation | None = None) -> float:
        """L2 distance by which one unit moves the clipped sum: C, or 2 C under replace-one."""
        return self.clipping_norm * (2.0 if (relation or self.relation) is Relation.REPLACE_ONE else 1.0)

    def noise_std(self, shares: int = 1) -> float:
        """Absolute standard deviation, per coordinate, of the noise on the *sum* of clipped contributions.

        Args:
            shares: independent parties that add equal parts of it (secure aggregation: the fewest survivors minus
                the most colluders); each adds this value.

        For banded noise it is the deviation of the uncorrelated Z that CorrelatedNoise takes. Divide the noised
        sum by the expected batch or cohort afterwards, never by the size drawn.

        Raises:
            PlanError: fewer than one share, or adaptive clipping, whose norm and noise change with every round.
        """
        if self.clipping is Clipping.ADAPTIVE:
            raise PlanError("The noise of adaptive clipping follows its norm: ask AdaptiveClipper.noise_std instead.")
        if shares < 1:
            raise PlanError(f"Noise cannot be shared among {shares} parties: expected at least 1 honest survivor.")
        matrix = self.matrix.sensitivity if self.mechanism is Mechanism.BANDED else 1.0
        return self.noise_multiplier * self.sensitivity() * matrix / math.sqrt(shares)

    @property
    def period(self) -> int:
        """Steps of an epoch: ceil(1 / sampling rate), up to rounding of the rate."""
        return max(1, math.ceil(1 / self.sampling_rate - 1e-9))

    @property
    def matrix(self) -> BandedMatrix:
        """The strategy matrix of banded noise over all planned steps."""
        return optimised(self.steps, self.period, self.bands)

    def events(self, steps: int | None = None) -> tuple[Event, ...]:
        """What ``steps`` releases book (by default all planned ones); none for 0.

        Example: a client books ``plan.events(plan.steps_per_round)`` before each round's training. Banded noise
        is one event however many of the planned steps are made: book it once a run.
        """
        steps = self.steps if steps is None else steps
        if steps <= 0:
            return ()
        if self.encoding is not None:
            event = self.encoding.event(
                self.mechanism, self.noise_multiplier, self.clipping_norm, relation=self.relation, steps=steps
            )
            return (event,)
        rate = self.sampling_rate if self.sampler.amplifies else 1.0
        event = Event(
            self.mechanism,
            self.sampler,
            self.relation,
            self.noise_multiplier,
            rate,
            self.participations(steps),
            steps,
        )
        return (event,)

    def participations(self, steps: int) -> int:
        """Releases to compose for ``steps`` steps; see ``Event.participations``."""
        if self.mechanism is Mechanism.BANDED:
            return -(-steps // self.steps)
        if self.sampler is not Sampler.SHUFFLED:
            return steps
        rounds, rest = divmod(steps, self.steps_per_round)
        return rounds * -(-self.steps_per_round // self.period) - (-rest // self.period)

    def epsilon(self, steps: int | None = None) -> float:
        """Upper bound on epsilon after ``steps`` releases (by default all planned ones) at the plan's delta."""
        return epsilon(self.events(steps), self.delta)

    def calibrated(self) -> PrivacyPlan:
        """The same plan with the smallest noise multiplier that keeps the budget over all planned steps.

        Raises:
            PlanError: no noise multiplier keeps the budget.
        """
        z = calibrate(
            self.epsilon_budget, self.delta, lambda candidate: replace(self, noise_multiplier=candidate).events()
        )
        return replace(self, noise_multiplier=z)

    def statement(self, steps: int | None = None) -> str:
        """One sentence: epsilon, delta, unit, relation, sampling assumption and against whom."""
        return statement(self, self.epsilon(steps))

    def record(self) -> dict[str, str | float | int | None]:
        """The plan as plain values by field name, for reports and wires (without the encoding)."""
        fields: dict[str, str | float | int | None] = {
            "unit": self.unit.value,
            "relation": self.relation.value,
            "sampler": self.sampler.value,
            "place": self.place.value,
            "mechanism": self.mechanism.value,
            "clipping": self.clipping.value,
        }
        for name in ("sampling_rate", "steps", "steps_per_round", "clipping_norm", "noise_multiplier", "delta"):
            fields[name] = getattr(self, name)
        fields |= {"epsilon_budget": self.epsilon_budget, "population": self.population, "bands": self.bands}
        return fields
