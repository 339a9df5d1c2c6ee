import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import Event, epsilon, epsilon_bound
from privacy.accounting.divergence import ORDERS, rdp
from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError

ADD, REPLACE = Relation.ADD_REMOVE, Relation.REPLACE_ONE


def gaussian(z, q=1.0, times=1, sampler=None, relation=ADD) -> Event:
    sampler = sampler or (Sampler.POISSON if q < 1 else Sampler.FULL)
    return Event(Mechanism.GAUSSIAN, sampler, relation, z, q, times, times)


@pytest.mark.parametrize(
    ("z", "q", "times", "reference"),
    [(1, 0.01, 1000, 1.83), (0.7, 0.01, 1000, 4.62), (1, 0.01, 10_000, 6.19), (2, 0.1, 500, 5.56), (5, 1, 50, 6.57)],
)
def test_reference_values(z: float, q: float, times: int, reference: float) -> None:
    assert epsilon([gaussian(z, q, times)], 1e-5) == pytest.approx(reference, abs=0.006)


def test_reference_values_of_the_client_level() -> None:
    assert epsilon([gaussian(1, 0.05, 100)], 1e-5) == pytest.approx(3.50, abs=0.006)
    assert epsilon([gaussian(1, 0.05, 100, Sampler.FIXED_SIZE, REPLACE)], 1e-5) == pytest.approx(6.47, abs=0.006)
    assert epsilon([gaussian(1, 1, 5)], 1e-5) == pytest.approx(11.5, abs=0.03)
    assert epsilon([gaussian(1, 1, 10, Sampler.SHUFFLED)], 1e-5) == pytest.approx(17.9, abs=0.05)


@pytest.mark.parametrize(
    ("z", "q", "times", "delta"), [(1.0, 0.1, 160, 1e-5), (2.0, 0.1, 500, 1e-6), (0.9, 0.02, 1000, 1e-5)]
)
def test_agrees_with_opacus_prv(z: float, q: float, times: int, delta: float) -> None:
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(z, q, times)]
    assert epsilon([gaussian(z, q, times)], delta) == pytest.approx(other.get_epsilon(delta), abs=0.02)


def test_one_gaussian_matches_the_closed_form() -> None:
    # Balle and Wang 2018, theorem 8: delta of the Gaussian mechanism at epsilon.
    from scipy.stats import norm

    for z in (0.5, 1.0, 4.0):
        e = epsilon([gaussian(z)], 1e-5)
        delta = norm.cdf(0.5 / z - e * z) - math.exp(e) * norm.cdf(-0.5 / z - e * z)
        assert delta <= 1e-5
        assert delta == pytest.approx(1e-5, rel=0.01)


def test_heterogeneous_ledger_composes_in_any_order_and_any_pieces() -> None:
    rng = random.Random(5)
    kinds = [gaussian(rng.uniform(0.8, 3), rng.uniform(0.01, 0.2), rng.randint(1, 9)) for _ in range(6)]
    kinds += [gaussian(rng.uniform(5, 9), 1.0, 2)]
    pieces = [event for event in kinds for _ in range(3)]
    rng.shuffle(pieces)
    whole = [event.times(3) for event in kinds]
    assert epsilon(pieces, 1e-5) == epsilon(whole, 1e-5)
    assert epsilon(pieces, 1e-5) <= epsilon_bound(pieces, 1e-5)


def test_heterogeneous_ledger_matches_dp_accounting_composed_at_once() -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    events = [gaussian(1.1, 0.05, 20), gaussian(1.7, 0.2, 15), gaussian(6.0, 1.0, 4)]
    accountant = PLDAccountant()
    for event in events:
        inner = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        one = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, inner) if event.sampling_rate < 1 else inner
        accountant.compose(one, event.participations)
    assert epsilon(events, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=2e-3)


def test_replace_one_is_twice_the_sensitivity() -> None:
    # Without sampling, noise of std 2 C z under replace-one is as private as std C z under add-remove ...
    assert epsilon([gaussian(2.0, relation=REPLACE)], 1e-5) == epsilon([gaussian(2.0)], 1e-5)
    # ... so the same noise is worth half the multiplier when the question changes.
    assert gaussian(2.0).under(REPLACE).noise_multiplier == 1.0
    assert epsilon([gaussian(2.0)], 1e-5, REPLACE) == epsilon([gaussian(1.0)], 1e-5)


@pytest.mark.parametrize(("z", "q"), [(0.5, 0.1), (1.0, 0.05), (2.0, 0.3)])
def test_poisson_replace_one_matches_dp_accounting(z: float, q: float) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(2 * z)), 50)
    ours = epsilon([gaussian(z, q, 50, relation=REPLACE)], 1e-5)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), abs=2e-3)
    assert ours <= epsilon_bound([gaussian(z, q, 50, relation=REPLACE)], 1e-5)


@pytest.mark.parametrize(("z", "q"), [(0.6, 0.01), (1.0, 0.1), (3.0, 0.5)])
def test_poisson_divergence_matches_dp_accounting(z: float, q: float) -> None:
    import dp_accounting
    from dp_accounting import rdp as library

    whole = [2.0, 3.0, 8.0, 32.0, 64.0]
    accountant = library.RdpAccountant(whole)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)))
    ours = [rdp(gaussian(z, q))[ORDERS.index(order)] if order in ORDERS else None for order in whole]
    for got, wanted in zip(ours, accountant.rdp, strict=True):
        assert got is None or got == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_mixed_relations_are_answered_for_the_stronger_one() -> None:
    mixed = [gaussian(3.0, 0.1, 10), gaussian(3.0, 0.1, 10, Sampler.FIXED_SIZE, REPLACE)]
    assert epsilon(mixed, 1e-5) > epsilon(mixed[:1], 1e-5)
    assert epsilon(mixed, 1e-5) == epsilon([mixed[0].under(REPLACE), mixed[1]], 1e-5)
    with pytest.raises(PlanError, match="replace-one"):
        epsilon(mixed, 1e-5, ADD)


@settings(max_examples=25, deadline=None)
@given(z=st.floats(0.6, 8), q=st.floats(0.001, 1), times=st.integers(1, 300), worse=st.floats(1.02, 1.5))
def test_epsilon_is_monotone(z: float, q: float, times: int, worse: float) -> None:
    base = epsilon([gaussian(z, q, times)], 1e-5)
    assert 0 <= base <= epsilon_bound([gaussian(z, q, times)], 1e-5) + 1e-9
    assert epsilon([gaussian(z / worse, q, times)], 1e-5) >= base - 1e-6
    assert epsilon([gaussian(z, q, times * 2)], 1e-5) >= base - 1e-6
    assert epsilon([gaussian(z, min(1, q * worse), times)], 1e-5) >= base - 0.01


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([gaussian(1.0, 0.0, 100, Sampler.POISSON)], 1e-5) == 0
    assert epsilon([gaussian(1.0).times(0)], 1e-5) == 0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(PlanError, match="delta"):
        epsilon([gaussian(1.0)], delta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"noise_multiplier": float("nan")}, "noise multiplier"),
        ({"sampling_rate": 1.5}, "sampling rate"),
        ({"sampler": Sampler.SHUFFLED}, "cannot amplify"),
        ({"sampler": Sampler.FULL}, "cannot amplify"),
        ({"sampler": Sampler.FIXED_SIZE}, "add-remove cannot be"),
        ({"mechanism": Mechanism.SKELLAM}, "No amplification"),
        ({"participations": -1}, "at least 0"),
    ],
)
def test_events_without_a_guarantee_do_not_construct(change: dict, message: str) -> None:
    values = {
        "mechanism": Mechanism.GAUSSIAN, "sampler": Sampler.POISSON, "relation": ADD,
        "noise_multiplier": 1.0, "sampling_rate": 0.1,
    }  # fmt: skip
    with pytest.raises(PlanError, match=message):
        Event(**(values | change))


def test_the_quadrature_of_poisson_replace_one_is_converged() -> None:
    from scipy import integrate

    z, q, order = 0.7, 0.2, 4.0
    density = lambda x, m: math.exp(-0.5 * ((x - m) / z) ** 2) / (z * math.sqrt(2 * math.pi))  # noqa: E731
    upper = lambda x: (1 - q) * density(x, 0) + q * density(x, -0.5)  # noqa: E731
    lower = lambda x: (1 - q) * density(x, 0) + q * density(x, 0.5)  # noqa: E731
    value, _ = integrate.quad(lambda x: upper(x) ** order * lower(x) ** (1 - order), -12, 12, limit=400)
    wanted = math.log(value) / (order - 1)
    assert rdp(gaussian(z, q, relation=REPLACE))[ORDERS.index(order)] == pytest.approx(wanted, rel=1e-8)
    assert np.all(np.diff(rdp(gaussian(z, q, relation=REPLACE))[:60]) > -1e-12)
