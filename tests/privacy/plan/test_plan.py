import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import LatticeEncoding
from privacy.plan import Clipping, Mechanism, Place, PrivacyPlan, Relation, Sampler, Unit
from umbel.config import RunConfig
from umbel.errors import PlanError

EXAMPLE = {
    "unit": Unit.EXAMPLE, "relation": Relation.ADD_REMOVE, "sampler": Sampler.POISSON, "sampling_rate": 0.1,
    "steps": 100, "clipping_norm": 2.0, "noise_multiplier": 1.5, "place": Place.STEP, "delta": 1e-5,
    "epsilon_budget": 8.0, "population": 640, "steps_per_round": 20,
}  # fmt: skip
CLIENT = EXAMPLE | {
    "unit": Unit.CLIENT, "place": Place.COORDINATOR, "population": 1000, "steps_per_round": 1,
}  # fmt: skip
ENCODING = LatticeEncoding(1000, 2.0**14, shares=8)
SECAGG = CLIENT | {
    "place": Place.SECAGG, "sampler": Sampler.FULL, "mechanism": Mechanism.SKELLAM, "encoding": ENCODING,
    "sampling_rate": 1.0,
}  # fmt: skip


PLAIN = {
    "privacy.unit": "none",
    "secagg.enabled": False,
    "task.minimum": 16,
    "train.amount": 20,
    "train.batch-size": 16,
    "train.microbatch": 16,
}


def config(**options) -> RunConfig:
    return RunConfig.from_flat(PLAIN | {k.replace("__", ".").replace("_", "-"): v for k, v in options.items()})


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PrivacyPlan(**EXAMPLE).noise_multiplier = 0.1  # type: ignore[misc]


def test_sensitivity_and_noise_follow_the_relation() -> None:
    plan = PrivacyPlan(**EXAMPLE)
    assert plan.sensitivity() == 2.0
    assert plan.sensitivity(Relation.REPLACE_ONE) == 4.0
    assert plan.noise_std() == 3.0
    assert dataclasses.replace(plan, relation=Relation.REPLACE_ONE).noise_std() == 6.0
    assert PrivacyPlan(**SECAGG).noise_std(shares=4) == pytest.approx(1.5)
    with pytest.raises(PlanError, match="honest survivor"):
        plan.noise_std(shares=0)


def test_epsilon_grows_with_the_steps_that_happened() -> None:
    plan = PrivacyPlan(**EXAMPLE)
    assert plan.epsilon(0) == 0
    assert 0 < plan.epsilon(10) < plan.epsilon(50) < plan.epsilon()
    assert plan.epsilon() == plan.epsilon(100)


def test_calibration_keeps_the_budget_tightly() -> None:
    plan = PrivacyPlan(**EXAMPLE).calibrated()
    assert 7.95 < plan.epsilon() <= 8.0


def test_shuffled_epochs_are_never_accounted_as_poisson() -> None:
    poisson = PrivacyPlan(**EXAMPLE)
    shuffled = PrivacyPlan(**(EXAMPLE | {"sampler": Sampler.SHUFFLED}))
    (event,) = shuffled.events()
    assert event.sampling_rate == 1
    assert event.participations == 10
    assert shuffled.epsilon() > 2 * poisson.epsilon()
    # A round of 25 steps begins its shuffle afresh: 3 epochs of 10 steps are touched.
    assert PrivacyPlan(**(EXAMPLE | {"sampler": Sampler.SHUFFLED, "steps_per_round": 25})).participations(50) == 6


@given(steps=st.integers(0, 300), per_round=st.integers(1, 40), batch=st.integers(1, 64))
def test_shuffled_participations_bound_every_examples_count(steps: int, per_round: int, batch: int) -> None:
    plan = PrivacyPlan(
        **(EXAMPLE | {"sampler": Sampler.SHUFFLED, "steps_per_round": per_round, "sampling_rate": batch / 64})
    )
    from privacy.sampling import ShuffledSampler

    counts = [0] * 16
    for start in range(0, steps, per_round):
        sampler = ShuffledSampler(16, plan.period)
        for batch_indices in sampler.batches(min(per_round, steps - start)):
            for index in batch_indices:
                counts[index] += 1
    assert max(counts) <= plan.participations(steps)


def test_banded_noise_beats_independent_noise_without_sampling_and_books_once() -> None:
    banded = PrivacyPlan(
        **(EXAMPLE | {"sampler": Sampler.CYCLIC, "mechanism": Mechanism.BANDED, "bands": 8})
    ).calibrated()
    assert banded.events(20) == tuple(dataclasses.replace(event, steps=20) for event in banded.events())
    assert banded.epsilon(20) == banded.epsilon()
    assert banded.participations(101) == 2
    assert banded.noise_std() == pytest.approx(banded.noise_multiplier * 2.0 * banded.matrix.sensitivity)
    independent = PrivacyPlan(**(EXAMPLE | {"sampler": Sampler.SHUFFLED})).calibrated()
    # Error of the last prefix sum, in units of the clipping norm.
    assert banded.noise_multiplier * banded.matrix.error < 0.7 * independent.noise_multiplier * math.sqrt(50)


@pytest.mark.parametrize("mechanism", [Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN])
def test_secure_aggregation_costs_a_little_more_than_the_trusted_coordinator(mechanism: Mechanism) -> None:
    trusted = PrivacyPlan(**(CLIENT | {"sampler": Sampler.FULL, "sampling_rate": 1.0})).calibrated()
    joint = PrivacyPlan(**(SECAGG | {"mechanism": mechanism})).calibrated()
    assert trusted.noise_multiplier <= joint.noise_multiplier < 1.2 * trusted.noise_multiplier
    assert joint.epsilon() <= 8.0


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (EXAMPLE, {"noise_multiplier": 0.0}, "noise multiplier is 0"),
        (EXAMPLE, {"noise_multiplier": math.nan}, "noise multiplier is nan"),
        (EXAMPLE, {"clipping_norm": math.inf}, "clipping norm"),
        (EXAMPLE, {"epsilon_budget": -1.0}, "epsilon budget"),
        (EXAMPLE, {"delta": 0.0}, "delta is 0"),
        (EXAMPLE, {"delta": 1.0}, "delta is 1"),
        (EXAMPLE, {"delta": 1 / 600}, "one over the 640 examples"),
        (EXAMPLE, {"sampling_rate": 1.2}, "lower the batch"),
        (EXAMPLE, {"sampling_rate": 0.0}, "sampling rate"),
        (EXAMPLE, {"steps": 0}, "releases nothing"),
        (EXAMPLE, {"population": 0}, "protects nobody"),
        (EXAMPLE, {"place": Place.COORDINATOR}, "single examples"),
        (EXAMPLE, {"place": Place.UPDATE}, "single examples"),
        (EXAMPLE, {"place": Place.SECAGG}, "single examples"),
        (EXAMPLE, {"sampler": Sampler.FIXED_SIZE}, "replace-one"),
        (EXAMPLE, {"sampler": Sampler.FULL}, "every example in every step"),
        (EXAMPLE, {"sampler": Sampler.CYCLIC}, "mechanism=banded"),
        (EXAMPLE, {"mechanism": Mechanism.BANDED}, "sampler=cyclic"),
        (EXAMPLE, {"bands": 3}, "bands"),
        (EXAMPLE, {"mechanism": Mechanism.SKELLAM, "encoding": ENCODING}, "secure aggregation"),
        (EXAMPLE, {"clipping": Clipping.ADAPTIVE}, "clipping=flat"),
        (CLIENT, {"place": Place.STEP}, "whole client"),
        (CLIENT, {"place": Place.UPDATE}, "takes part"),
        (CLIENT, {"place": Place.UPDATE, "relation": Relation.REPLACE_ONE}, "amplifies nothing"),
        (CLIENT, {"sampler": Sampler.SHUFFLED}, "Cohorts are not drawn"),
        (SECAGG, {"sampler": Sampler.POISSON}, "amplifies nothing"),
        (SECAGG, {"mechanism": Mechanism.GAUSSIAN}, "integer noise"),
        (SECAGG, {"encoding": None}, "lacks an encoding"),
        (CLIENT, {"encoding": ENCODING}, "has an encoding"),
        (SECAGG, {"clipping": Clipping.ADAPTIVE}, "place=coordinator"),
    ],
)
def test_plans_without_a_guarantee_do_not_construct(base: dict, change: dict, message: str) -> None:
    PrivacyPlan(**base)
    with pytest.raises(PlanError, match=message) as caught:
        PrivacyPlan(**(base | change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_statements_say_what_is_assumed_and_round_epsilon_up() -> None:
    text = PrivacyPlan(**EXAMPLE).statement()
    for part in ("1e-05", "example-level", "adding or removing", "Poisson", "640", "outside the client"):
        assert part in text
    plan = PrivacyPlan(**EXAMPLE)
    stated = float(text[1 : text.index(",")])
    assert plan.epsilon() <= stated <= plan.epsilon() + 0.01
    assert "not against the coordinator" in PrivacyPlan(**CLIENT).statement()
    assert "without amplification" in PrivacyPlan(**SECAGG).statement()
    assert "replacing" in PrivacyPlan(**(EXAMPLE | {"relation": Relation.REPLACE_ONE})).statement()


def test_record_is_plain() -> None:
    record = PrivacyPlan(**EXAMPLE).record()
    assert record["unit"] == "example"
    assert record["noise_multiplier"] == 1.5
    assert all(value is None or type(value) in (str, int, float) for value in record.values())


def test_config_without_privacy_has_no_plan() -> None:
    assert PrivacyPlan.from_config(config(), examples=10) is None


def test_each_client_is_calibrated_for_the_same_epsilon() -> None:
    base = config(privacy__unit="example", train__batch_size=32)
    few, many = (PrivacyPlan.from_config(base, examples=n) for n in (200, 900))
    assert few is not None
    assert many is not None
    assert few.sampling_rate == 32 / 200
    assert few.noise_multiplier > many.noise_multiplier
    assert few.steps == 8 * 20
    assert few.epsilon() == pytest.approx(many.epsilon(), rel=5e-3) == pytest.approx(8, rel=5e-3)


def test_epochs_are_counted_in_steps() -> None:
    plan = PrivacyPlan.from_config(
        config(privacy__unit="example", train__batch_size=32, train__unit="epochs", train__amount=2), examples=100
    )
    assert plan is not None
    assert (plan.steps_per_round, plan.steps) == (8, 64)


@pytest.mark.parametrize(
    ("options", "sampler", "mechanism"),
    [
        ({"privacy__sampler": "full"}, Sampler.FULL, Mechanism.GAUSSIAN),
        ({"privacy__sampler": "poisson", "federation__cohort": "poisson"}, Sampler.POISSON, Mechanism.GAUSSIAN),
        (
            {"privacy__sampler": "fixed-size", "federation__cohort": "fixed", "privacy__relation": "replace-one"},
            Sampler.FIXED_SIZE,
            Mechanism.GAUSSIAN,
        ),
        (
            {"privacy__sampler": "full", "privacy__place": "secagg", "secagg__enabled": True},
            Sampler.FULL,
            Mechanism.SKELLAM,
        ),
    ],
)
def test_client_level_configs(options: dict, sampler: Sampler, mechanism: Mechanism) -> None:
    options = {"privacy__place": "coordinator"} | options
    encoding = ENCODING if mechanism is Mechanism.SKELLAM else None
    plan = PrivacyPlan.from_config(config(privacy__unit="client", **options), encoding=encoding)
    assert plan is not None
    assert (plan.sampler, plan.mechanism, plan.steps, plan.population) == (sampler, mechanism, 8, 20)
    assert plan.epsilon() <= 8


@pytest.mark.parametrize(
    ("options", "examples", "message"),
    [
        ({}, None, "public number"),
        ({}, 10, "above 1"),
        ({"privacy__delta": 0.01}, 650, "one over"),
        ({"privacy__noise": "fixed", "privacy__noise_multiplier": 0.3}, 650, "noise=calibrate"),
        ({"privacy__unit": "client", "privacy__place": "coordinator"}, None, "federation.cohort=all"),
        (
            {
                "privacy__unit": "client", "privacy__place": "coordinator", "privacy__sampler": "full",
                "federation__weights": "examples",
            },
            None,
            "weights=uniform",
        ),
        (
            {"privacy__unit": "client", "privacy__place": "secagg", "privacy__sampler": "full"},
            None,
            "secagg.enabled=false",
        ),
    ],
)  # fmt: skip
def test_configs_without_a_guarantee_are_refused(options: dict, examples: int | None, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PrivacyPlan.from_config(config(**({"privacy__unit": "example"} | options)), examples=examples)
