"""What client-level releases cost one example."""

from dataclasses import replace

import pytest

from privacy.accounting import Event, epsilon, per_example
from privacy.terms import Mechanism, Relation, Sampler

OWN = Event(Mechanism.GAUSSIAN, Sampler.POISSON, Relation.ADD_REMOVE, 1.05, 0.1, 20, 20)
CLIENT = Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, 8.0, participations=3, steps=3)
DELTA = 1e-5


def gaussian(z, times=1, relation=Relation.ADD_REMOVE):
    return Event(Mechanism.GAUSSIAN, Sampler.FULL, relation, z, participations=times, steps=times)


def test_one_example_replaces_a_client_so_add_remove_counts_with_half_the_noise():
    assert epsilon(per_example((), [CLIENT]), DELTA) == epsilon([gaussian(4.0, 3)], DELTA)
    exchanged = replace(CLIENT, relation=Relation.REPLACE_ONE)
    assert per_example((), [exchanged]) == (exchanged,), "replace-one is already what happens to the client"


@pytest.mark.parametrize("relation", Relation)
def test_unsampled_releases_of_both_units_compose_to_one_gaussian_release(relation):
    found = per_example([gaussian(4.0, 3, relation)], [gaussian(4.0, 3, Relation.REPLACE_ONE)])
    assert epsilon(found, DELTA) == pytest.approx(epsilon([gaussian(4.0, 6)], DELTA), rel=1e-9)


def test_client_events_do_not_push_the_examples_own_ones_to_replace_one():
    together = epsilon(per_example([OWN], [CLIENT]), DELTA)
    assert together == epsilon([OWN, gaussian(4.0, 3)], DELTA)
    assert max(epsilon([OWN], DELTA), epsilon([gaussian(4.0, 3)], DELTA)) < together < epsilon([OWN, CLIENT], DELTA) * 2


@pytest.mark.parametrize("sampler", [Sampler.POISSON, Sampler.FIXED_SIZE])
def test_a_sampled_cohort_stays_under_replace_one(sampler):
    relation = Relation.ADD_REMOVE if sampler is Sampler.POISSON else Relation.REPLACE_ONE
    drawn = Event(Mechanism.GAUSSIAN, sampler, relation, 4.0, 0.2, 3, 3)
    found = per_example([OWN], [drawn])
    assert found == (OWN, drawn.under(Relation.REPLACE_ONE))
    assert epsilon(found, DELTA) >= epsilon([OWN.under(Relation.REPLACE_ONE)], DELTA)


def test_lattice_noise_moves_by_twice_the_lattice_norm():
    noise = Event(Mechanism.SKELLAM, Sampler.FULL, Relation.ADD_REMOVE, 2.0, l1=40.0, l2=10.0, variance=400.0)
    (found,) = per_example((), [noise])
    assert (found.l1, found.l2, found.variance) == (80.0, 20.0, 400.0)
    assert epsilon(per_example([OWN], [noise]), DELTA) > epsilon([noise, OWN], DELTA)


def test_without_client_events_nothing_changes():
    assert per_example([OWN, OWN], ()) == (OWN, OWN)
    assert per_example((), ()) == ()
