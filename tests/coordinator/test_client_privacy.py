"""Client-level differential privacy: central, local and under secure aggregation, through whole runs."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy.ledger import Ledger
from privacy.terms import Unit
from tests.federated import options, run_in_memory
from umbel.errors import BudgetExceeded, PlanError, SecAggError

CLIENTS = 6


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = {
            "run.directory": str(tmp_path / "runs"),
            "federation.clients": CLIENTS,
            "federation.rounds": 2,
            "privacy.unit": "client",
            "privacy.delta": 1e-2,
            "privacy.sampler": "full",
            "privacy.place": "coordinator",
            "privacy.clipping-norm": 0.1,
        }
        changes = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        return options(tiny_root) | base | changes

    return make


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_central_rounds_are_booked_and_reported(flat):
    path = run_in_memory(flat())
    start, *rounds, _ = lines(path)
    assert start["privacy"]["unit"] == "client"
    assert "not against the coordinator" in start["privacy"]["statement"]
    assert 0 < rounds[0]["privacy"]["epsilon"] < rounds[1]["privacy"]["epsilon"] <= 8.0
    with Ledger.open(path / "privacy.sqlite", create=False) as ledger:
        spent = ledger.spent(1e-2, dataset="population", unit=Unit.CLIENT)
    assert spent == pytest.approx(rounds[1]["privacy"]["epsilon"], rel=1e-6)
    assert all(line["train_loss"] is None for line in rounds)


def test_a_poisson_cohort_may_be_empty_and_still_releases_noise(flat):
    changes = {"federation.cohort": "poisson", "federation.cohort-size": 1, "privacy.sampler": "poisson"}
    path = run_in_memory(flat(federation__rounds=6, federation__minimum=1) | changes)
    rounds = lines(path)[1:-1]
    assert len(rounds) == 6
    assert {line["survivors"] for line in rounds} != {CLIENTS}


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_the_noise_has_the_plans_scale(flat, clipping):
    from coordinator.accumulator import ExactAccumulator
    from coordinator.central_dp import CentralMechanism
    from privacy.plan import PrivacyPlan
    from umbel.adapter import AdapterSpec, LoraShape
    from umbel.config import RunConfig

    config = RunConfig.from_flat(flat(privacy__clipping=clipping, **{"privacy__quantile-noise": 50.0}))
    plan = PrivacyPlan.from_config(config)
    spec = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 20_000)}, LoraShape(2, 2.0))
    mechanism = CentralMechanism(plan, config, spec)
    total = ExactAccumulator(spec.size)
    update = np.full(spec.size, 1.0, np.float32)
    clipped = mechanism.clip(update)
    assert np.linalg.norm(clipped.astype(np.float64)) <= 0.1
    total.add(clipped, 1.0)
    noise = mechanism.release(total) * CLIENTS - clipped
    assert noise.std() == pytest.approx(plan.noise_std() if clipping != "adaptive" else noise.std(), rel=0.03)
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(spec.size)


def test_a_noised_mean_is_never_drawn_twice(flat, monkeypatch):
    """Killed after the release and before the checkpoint: the resumed run goes on with the very same mean."""
    from coordinator import federation

    class Killed(BaseException):
        pass

    steps = []
    original_step = federation.Federation._step

    def step(self, number, cohort, collected, state):
        steps.append((number, collected.mean.copy()))
        if len(steps) == 2:
            raise Killed
        return original_step(self, number, cohort, collected, state)

    monkeypatch.setattr(federation.Federation, "_step", step)
    with pytest.raises(Killed):
        run_in_memory(flat())
    path = run_in_memory(flat())
    assert [number for number, _ in steps] == [1, 2, 2]
    np.testing.assert_array_equal(steps[1][1], steps[2][1])
    with Ledger.open(path / "privacy.sqlite", create=False) as ledger:
        assert len(ledger.events(dataset="population", unit=Unit.CLIENT)) == 2


def test_killed_before_the_release_costs_nothing(flat, monkeypatch):
    from coordinator.collect import booked

    class Killed(BaseException):
        pass

    def bomb(self, number, collected):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(booked.BookedCollector, "_keep", bomb)
        with pytest.raises(Killed):
            run_in_memory(flat())
    path = run_in_memory(flat())
    with Ledger.open(path / "privacy.sqlite", create=False) as ledger:
        assert len(ledger.events(dataset="population", unit=Unit.CLIENT)) == 2


def test_a_spent_budget_ends_the_run(flat, monkeypatch):
    """More rounds are booked than planned for, as if another run had used the same population."""
    from coordinator.collect import booked

    def twice(ledger, plan, **options):
        original(ledger, plan, **options)
        return original(ledger, plan, **options)

    original = booked.book
    monkeypatch.setattr(booked, "book", twice)
    with pytest.raises(BudgetExceeded):
        run_in_memory(flat())


def test_local_noise_is_booked_at_every_site(flat):
    path = run_in_memory(flat(privacy__place="update", privacy__relation="replace-one"))
    rounds = lines(path)[1:-1]
    assert len(list(path.glob("sites/*/ledger.sqlite"))) == CLIENTS
    assert 0 < rounds[0]["privacy"]["epsilon"] < rounds[1]["privacy"]["epsilon"] <= 8.0


def test_distributed_noise_under_secure_aggregation(flat):
    path = run_in_memory(flat(privacy__place="secagg", secagg__enabled=True))
    start, *rounds, _ = lines(path)
    assert "coordinator included" in start["privacy"]["statement"]
    assert start["secagg"]["threshold"] >= 2
    assert rounds[1]["privacy"]["epsilon"] <= 8.0
    again = run_in_memory(flat(run__id="s", privacy__place="secagg", secagg__enabled=True))
    a, b = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (path, again))
    assert any(not np.array_equal(a[k], b[k]) for k in a)  # noise is never seeded


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"privacy__sampler": "poisson"}, PlanError, "federation.cohort"),
        ({"privacy__place": "step"}, PlanError, "whole client"),
        ({"federation__weights": "examples"}, PlanError, "uniform"),
        ({"secagg__enabled": True}, (PlanError, SecAggError), "privacy.place"),
        ({"privacy__delta": 0.5}, PlanError, "delta"),
    ],
)
def test_what_cannot_be_stated_is_refused_before_any_round(flat, changes, error, words):
    with pytest.raises(error, match=words):
        run_in_memory(flat(**changes))
