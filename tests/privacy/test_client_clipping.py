import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from privacy.accounting import Event, epsilon
from privacy.client_clipping import AdaptiveClipper, FlatClipper, PerLayerClipper, clipper_for
from privacy.noise import FixedNoise
from privacy.plan import Clipping, Mechanism, Place, PrivacyPlan, Relation, Sampler, Unit
from umbel.adapter import AdapterSpec, LoraShape
from umbel.config import PrivacyConfig
from umbel.errors import PlanError, PrivacyError

SPEC = AdapterSpec.from_shapes({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (4, 2)}, LoraShape(2, 4.0))
PLAN = PrivacyPlan(
    Unit.CLIENT, Relation.ADD_REMOVE, Sampler.FULL, 1.0, 10, 1.5, 1.2, Place.COORDINATOR, 1e-5, 100.0, population=50
)
updates = arrays(np.float32, 14, elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(update=updates, norm=st.floats(1e-3, 1e3))
def test_norms_are_bounded_directions_kept_and_small_updates_untouched(update: np.ndarray, norm: float) -> None:
    for clipper in (FlatClipper(norm), PerLayerClipper(norm, SPEC)):
        before = update.copy()
        clipped = clipper.clip(update)
        assert np.array_equal(update, before), "the input is not changed"
        assert np.linalg.norm(clipped.vector.astype(np.float64)) <= norm
        assert clipped.norm == pytest.approx(np.linalg.norm(update.astype(np.float64)))
        if clipped.within:
            assert np.array_equal(clipped.vector, update)
        assert np.all(clipped.vector * np.sign(update) >= 0)
    flat = FlatClipper(norm).clip(update)
    assert flat.within == (flat.norm <= norm)
    if not flat.within:
        assert np.linalg.norm(flat.vector.astype(np.float64)) == pytest.approx(norm, rel=1e-6)


@given(first=updates, second=updates)
def test_sensitivity_bounds_what_one_client_can_move(first: np.ndarray, second: np.ndarray) -> None:
    for clipper in (FlatClipper(1.5), PerLayerClipper(1.5, SPEC)):
        a, b = (clipper.clip(u).vector.astype(np.float64) for u in (first, second))
        assert np.linalg.norm(a) <= clipper.sensitivity(Relation.ADD_REMOVE) == 1.5
        assert np.linalg.norm(a - b) <= clipper.sensitivity(Relation.REPLACE_ONE) == 3.0


def test_zero_stays_zero() -> None:
    for clipper in (FlatClipper(1.0), PerLayerClipper(1.0, SPEC)):
        clipped = clipper.clip(SPEC.zeros())
        assert clipped.within
        assert not clipped.vector.any()


def test_each_layer_obeys_its_share() -> None:
    clipped = PerLayerClipper(2.0, SPEC).clip(np.full(14, 9.0, dtype=np.float32))
    norms = [np.linalg.norm(part) for part in SPEC.views(clipped.vector).values()]
    assert norms == pytest.approx([2 / np.sqrt(2)] * 2, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_updates_that_are_not_finite_are_refused(value: float) -> None:
    update = SPEC.zeros()
    update[3] = value
    for clipper in (FlatClipper(1.0), PerLayerClipper(1.0, SPEC), AdaptiveClipper(1.0)):
        with pytest.raises(PrivacyError, match="drop this update"):
            clipper.clip(update)


@pytest.mark.parametrize("norm", [0.0, -1.0, np.nan, np.inf])
def test_impossible_norms_are_refused(norm: float) -> None:
    with pytest.raises(PlanError, match="clipping norm"):
        FlatClipper(norm)


def test_adaptive_norm_finds_the_quantile() -> None:
    rng = np.random.default_rng(0)
    norms = rng.lognormal(1.0, 0.5, size=4000)
    clipper = AdaptiveClipper(0.1, quantile=0.7, quantile_noise=2.0)
    for _ in range(120):
        cohort = rng.choice(norms, 100)
        clipper.update(
            int((cohort <= clipper.norm).sum()), 100, 100.0, FixedNoise(rng.integers(1 << 30), for_tests=True)
        )
    assert clipper.norm == pytest.approx(np.quantile(norms, 0.7), rel=0.15)


def test_the_indicator_is_noised() -> None:
    after = [AdaptiveClipper(1.0).update(5, 10, 10.0, FixedNoise(seed, for_tests=True)) for seed in range(200)]
    # b is off by N(0, 2)/10, so log C moves by -0.2 times that.
    assert np.std(np.log(after)) == pytest.approx(0.2 * 2.0 / 10, rel=0.15)


@pytest.mark.parametrize("relation", list(Relation))
def test_update_and_indicator_together_cost_what_the_plan_says(relation: Relation) -> None:
    import dataclasses

    plan = dataclasses.replace(PLAN, relation=relation, clipping=Clipping.ADAPTIVE)
    clipper = clipper_for(plan, PrivacyConfig(), SPEC)
    assert isinstance(clipper, AdaptiveClipper)
    factor = plan.sensitivity() / plan.clipping_norm
    update_multiplier = clipper.noise_std(plan) / clipper.sensitivity(relation)
    indicator_multiplier = clipper.quantile_noise / (0.5 * factor)
    parts = [
        Event(Mechanism.GAUSSIAN, Sampler.FULL, relation, z, participations=10)
        for z in (update_multiplier, indicator_multiplier)
    ]
    assert epsilon(parts, 1e-5) == pytest.approx(plan.epsilon(), rel=1e-9)
    with pytest.raises(PlanError, match=r"AdaptiveClipper\.noise_std"):
        plan.noise_std()


def test_an_indicator_that_costs_too_much_is_refused() -> None:
    with pytest.raises(PlanError, match="quantile-noise"):
        AdaptiveClipper(1.0, quantile_noise=0.3).noise_std(PLAN)
    with pytest.raises(PrivacyError, match="within"):
        AdaptiveClipper(1.0).update(3, 2, 2.0)
    with pytest.raises(PlanError, match="quantile"):
        AdaptiveClipper(1.0, quantile=1.0)


def test_the_plan_names_the_clipper() -> None:
    import dataclasses

    kinds = {Clipping.FLAT: FlatClipper, Clipping.PER_LAYER: PerLayerClipper, Clipping.ADAPTIVE: AdaptiveClipper}
    for clipping, kind in kinds.items():
        clipper = clipper_for(dataclasses.replace(PLAN, clipping=clipping), PrivacyConfig(), SPEC)
        assert type(clipper) is kind
        assert clipper.norm == PLAN.clipping_norm
    with pytest.raises(PlanError, match="at least one tensor"):
        PerLayerClipper(1.0, AdapterSpec.from_shapes({}, LoraShape(2, 4.0)))
