import math

import numpy as np
import pytest
from scipy.special import ive

from privacy.accounting import LatticeEncoding, epsilon
from privacy.accounting.event import Event
from privacy.accounting.lattice import skellam_rdp
from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError

FINE = LatticeEncoding(dimension=1000, scale=2.0**16, shares=10)


@pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
def test_a_fine_lattice_costs_nearly_what_the_gaussian_costs(mechanism: Mechanism) -> None:
    continuous = Event(Mechanism.DISCRETE_GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, 4.0, participations=100)
    lattice = FINE.event(mechanism, 4.0, 1.0, steps=100)
    ratio = epsilon([lattice], 1e-5) / epsilon([continuous], 1e-5)
    assert 1 <= ratio < 1.02
    coarse = LatticeEncoding(1000, 2.0**5, shares=10).event(mechanism, 4.0, 1.0, steps=100)
    assert epsilon([coarse], 1e-5) > 1.05 * epsilon([lattice], 1e-5)


@pytest.mark.parametrize("order", [2, 3, 5, 10])
def test_the_skellam_bound_holds_in_one_dimension(order: int) -> None:
    # Exact divergence between Sk(0, mu) and its shift by an integer, summed over the lattice.
    mu, shift = 50.0, 3
    k = np.arange(-90, 91)  # 13 deviations; beyond them float64 has no masses left
    log_pmf = lambda x: np.log(ive(np.abs(x), mu))  # noqa: E731
    logs = order * log_pmf(k - shift) + (1 - order) * log_pmf(k)
    exact = math.log(np.exp(logs).sum()) / (order - 1)
    bound = skellam_rdp(order, shift, shift, mu)
    assert exact <= bound <= 1.2 * exact


def test_only_integer_orders_are_claimed() -> None:
    assert math.isinf(skellam_rdp(2.5, 1, 1, 10))
    assert math.isinf(skellam_rdp(1.0, 1, 1, 10))


def test_replace_one_doubles_the_lattice_sensitivity() -> None:
    one = FINE.event(Mechanism.SKELLAM, 4.0, 1.0)
    two = one.under(Relation.REPLACE_ONE)
    assert (two.l1, two.l2, two.variance) == (2 * one.l1, 2 * one.l2, one.variance)
    assert epsilon([two], 1e-5) > epsilon([one], 1e-5)


def test_narrow_shares_of_discrete_gaussians_have_no_guarantee() -> None:
    narrow = LatticeEncoding(1000, 1.0, shares=100).event(Mechanism.DISCRETE_GAUSSIAN, 1.0, 1.0)
    assert epsilon([narrow], 1e-5) > 1e6


def test_sensitivities_after_rounding() -> None:
    # Both bounds of the rounding: c s + sqrt(d), or the conditional one; the smaller counts.
    small = LatticeEncoding(4, 100.0)
    assert small.l2(1.0) <= 102.0
    assert small.l2(1.0) >= 100.0
    assert small.l1(1.0) == pytest.approx(2 * small.l2(1.0))


@pytest.mark.parametrize(
    "bad", [{"dimension": 0}, {"scale": 0.0}, {"scale": float("inf")}, {"beta": 1.0}, {"shares": 0}]
)
def test_impossible_encodings_are_refused(bad: dict) -> None:
    with pytest.raises(PlanError, match="lattice encoding"):
        LatticeEncoding(**({"dimension": 10, "scale": 2.0} | bad))


def test_other_mechanisms_do_not_live_on_the_lattice() -> None:
    with pytest.raises(PlanError, match="integers"):
        FINE.event(Mechanism.GAUSSIAN, 1.0, 1.0)
