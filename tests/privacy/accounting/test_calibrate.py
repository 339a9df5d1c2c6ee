import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import Event, calibrate, epsilon
from privacy.terms import Mechanism, Relation, Sampler
from umbel.errors import PlanError


def events(z: float, q: float, times: int, sampler=Sampler.POISSON, relation=Relation.ADD_REMOVE) -> list[Event]:
    return [Event(Mechanism.GAUSSIAN, sampler, relation, z, q, times, times)]


@settings(max_examples=12, deadline=None)
@given(target=st.floats(0.3, 20), q=st.floats(0.005, 1), times=st.integers(1, 400))
def test_calibration_is_tight_and_on_the_safe_side(target: float, q: float, times: int) -> None:
    sampler = Sampler.POISSON if q < 1 else Sampler.FULL
    z = calibrate(target, 1e-5, lambda c: events(c, q, times, sampler))
    assert epsilon(events(z, q, times, sampler), 1e-5) <= target
    assert epsilon(events(z / 1.002, q, times, sampler), 1e-5) > target


def test_calibration_where_only_renyi_bounds_exist() -> None:
    make = lambda z: events(z, 0.1, 50, Sampler.FIXED_SIZE, Relation.REPLACE_ONE)  # noqa: E731
    z = calibrate(4.0, 1e-5, make)
    assert epsilon(make(z), 1e-5) <= 4.0 < epsilon(make(z / 1.002), 1e-5)


@pytest.mark.parametrize("target", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_targets_are_refused(target: float) -> None:
    with pytest.raises(PlanError, match="target epsilon"):
        calibrate(target, 1e-5, lambda z: events(z, 0.1, 10))


def test_a_target_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(PlanError, match="raise epsilon or delta"):
        calibrate(1e-3, 1e-5, lambda z: events(1.0, 0.5, 10))
