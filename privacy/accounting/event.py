"""One kind of noisy release, applied a number of times: what a ledger stores and an accountant composes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError


@dataclass(frozen=True, slots=True)
class Event:
    """Identical releases of clipped, noised sums.

    Attributes:
        mechanism: distribution of the noise.
        sampler: how the units of each release were chosen.
        relation: the neighbouring relation that ``noise_multiplier`` refers to.
        noise_multiplier: standard deviation of the noise over the sensitivity *under that relation*
            (C for add-remove, 2 C for replace-one), as in dp-accounting. For banded noise over the sensitivity
            of the encoded participations.
        sampling_rate: probability that a unit is in one release; 1 where nothing is amplified.
        participations: releases that are composed. For samplers that amplify every step; for shuffled and
            cyclic epochs the most often that one unit takes part; for banded noise 1, however many steps.
        steps: releases made, for the record; it does not enter epsilon.
        l1, l2, variance: of the Skellam mechanism, in units of the integer lattice; 0 otherwise.
    """

    mechanism: Mechanism
    sampler: Sampler
    relation: Relation
    noise_multiplier: float
    sampling_rate: float = 1.0
    participations: int = 1
    steps: int = 1
    l1: float = 0.0
    l2: float = 0.0
    variance: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PlanError(
                f"A noise multiplier is {self.noise_multiplier}, expected a finite number above 0: "
                "calibrate it with `umbel privacy plan`."
            )
        if not 0 <= self.sampling_rate <= 1:
            raise PlanError(
                f"A sampling rate is {self.sampling_rate}, expected 0 to 1: lower the batch or cohort size to at "
                "most the number of examples or clients."
            )
        if self.participations < 0 or self.steps < 0:
            raise PlanError(
                f"An event counts {self.participations} participations in {self.steps} steps: expected at least 0."
            )
        if self.sampling_rate < 1 and not self.sampler.amplifies:
            raise PlanError(
                f"Sampling rate {self.sampling_rate} cannot amplify with the sampler {self.sampler.value}: only "
                "poisson and fixed-size draw a secret sample, so use one of them or a rate of 1."
            )
        if self.sampling_rate < 1 and self.mechanism is not Mechanism.GAUSSIAN:
            raise PlanError(
                f"No amplification by sampling is known here for the mechanism {self.mechanism.value}: "
                "use the gaussian mechanism or the sampler full."
            )
        if self.sampler is Sampler.FIXED_SIZE and self.relation is not Relation.REPLACE_ONE:
            raise PlanError(
                "A fixed-size sample reveals whether the data set has one unit more, so add-remove cannot be "
                "claimed: set privacy.relation=replace-one or privacy.sampler=poisson."
            )
        if self.mechanism is Mechanism.SKELLAM and not (self.variance > 0 and self.l2 > 0 and self.l1 > 0):
            raise PlanError(
                "A Skellam event lacks its lattice sensitivities or its variance: build it with LatticeEncoding.event."
            )

    def times(self, count: int) -> Event:
        """The same releases ``count`` times over (participations and steps multiply)."""
        return replace(self, participations=self.participations * count, steps=self.steps * count)

    def under(self, relation: Relation) -> Event:
        """The same releases, described for another neighbouring relation (the noise itself is the same).

        Raises:
            PlanError: fixed-size samples or discrete Gaussian noise under add-remove.
        """
        if relation is self.relation:
            return self
        factor = 0.5 if relation is Relation.REPLACE_ONE else 2.0
        if factor == 2 and self.mechanism is Mechanism.DISCRETE_GAUSSIAN:
            raise PlanError(
                "Releases with discrete Gaussian noise that were booked for replace-one are not known to be more "
                "private for add-remove: ask for epsilon under replace-one."
            )
        return replace(
            self,
            relation=relation,
            noise_multiplier=self.noise_multiplier * factor,
            l1=self.l1 / factor,
            l2=self.l2 / factor,
        )

    @property
    def kind(self) -> Event:
        """The event without its counts: events of one kind compose by adding participations."""
        return replace(self, participations=1, steps=1)


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Events of one kind added up, in an order that does not depend on the order of the input.

    Events without participations disappear, as do events with sampling rate 0: nobody can be in them.
    """
    total: dict[Event, tuple[int, int]] = {}
    for event in events:
        if event.participations and event.sampling_rate > 0:
            count, steps = total.get(event.kind, (0, 0))
            total[event.kind] = (count + event.participations, steps + event.steps)
    combined = [replace(kind, participations=count, steps=steps) for kind, (count, steps) in total.items()]
    return tuple(sorted(combined, key=_order))


def _order(event: Event) -> tuple[str, str, str, float, float, float, float, float]:
    return (
        event.mechanism.value,
        event.sampler.value,
        event.relation.value,
        event.noise_multiplier,
        event.sampling_rate,
        event.l1,
        event.l2,
        event.variance,
    )
