import numpy as np
import pytest

from coordinator.cohort import draw_cohort
from umbel.config import FederationConfig

PEOPLE = [f"s{i}" for i in range(50)]


def config(**options):
    return FederationConfig(**{"clients": 50, "minimum": 1, **options})


def test_all_takes_everybody():
    assert draw_cohort(config(), PEOPLE, 1, 0) == PEOPLE


def test_fixed_takes_exactly_so_many_without_repeats_and_repeats_by_seed():
    options = config(cohort="fixed", **{"cohort-size": 7})
    first = draw_cohort(options, PEOPLE, 3, 5)
    assert len(set(first)) == 7
    assert first == draw_cohort(options, PEOPLE, 3, 5)
    assert first != draw_cohort(options, PEOPLE, 4, 5)
    assert first != draw_cohort(options, PEOPLE, 3, 6)


def test_poisson_has_the_right_mean_and_variance():
    options = config(cohort="poisson", **{"cohort-size": 10})
    sizes = np.array([len(draw_cohort(options, PEOPLE, r, 1)) for r in range(2000)])
    assert sizes.mean() == pytest.approx(10, abs=4 * np.sqrt(8 / 2000))
    assert sizes.var() == pytest.approx(8, rel=0.2)  # 50 q (1 - q); a fixed size would give 0


def test_a_private_cohort_is_not_determined_by_the_seed():
    options = config(cohort="fixed", **{"cohort-size": 25})
    drawn = {tuple(draw_cohort(options, PEOPLE, 1, 0, private=True)) for _ in range(8)}
    assert len(drawn) > 1
