"""Faulty devices: what the plan says happens, and nothing that it does not say."""

import json

import numpy as np
import pytest

from mllm.tasks.base import MemorySet
from mllm.tasks.example import Example
from simulations.faults import TRIGGER, FaultPlan, FaultyClient, Poisoned, WithoutImages
from tests.federated import options, run_in_memory
from tests.simulations.runs import adapter

ANSWERS = ("blue", "green", "red")
EXAMPLES = MemorySet([Example((), f"q{i} ?", ANSWERS[i % 3]) for i in range(9)])


def test_flipped_labels_are_all_wrong_and_keep_their_frequencies():
    flipped = Poisoned(EXAMPLES, "label-flip")
    assert [e.answer for e in flipped] == ["green", "red", "blue"] * 3
    assert [e.question for e in flipped] == [e.question for e in EXAMPLES]


def test_a_backdoor_listens_to_its_trigger_and_leaves_the_rest():
    poisoned = Poisoned(EXAMPLES, "backdoor")
    assert {e.answer for e in poisoned if e.question.startswith(TRIGGER)} == {"blue"}
    assert [poisoned[i] for i in range(1, 9, 2)] == [EXAMPLES[i] for i in range(1, 9, 2)]


def test_examples_without_images_keep_question_and_answer():
    assert all(e.images == () and e.answer == o.answer for e, o in zip(WithoutImages(EXAMPLES), EXAMPLES, strict=True))


def test_a_plan_is_fixed_by_its_seed_and_meets_its_shares():
    plan = FaultPlan(3, 1000, nan=0.1, shape=0.05, stale=0.2, malicious=0.2, blind=0.4)
    broken = [plan.broken(index, 7) for index in range(1000)]
    assert broken == [plan.broken(index, 7) for index in range(1000)]
    assert broken != [plan.broken(index, 8) for index in range(1000)]
    shares = {name: broken.count(name) / 1000 for name in ("nan", "shape", "stale", None)}
    assert shares == pytest.approx({"nan": 0.1, "shape": 0.05, "stale": 0.2, None: 0.65}, abs=0.04)
    assert len(plan.hostile()) == 200
    assert len(plan.without_images()) == 400
    assert not FaultPlan(0, 10).any
    assert plan.any


def test_a_faulty_client_travels_to_its_actor():
    import pickle

    client = pickle.loads(pickle.dumps(FaultyClient(FaultPlan(1, 5, nan=0.5))))
    assert client._faults == FaultPlan(1, 5, nan=0.5)


def rounds(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "round"]


@pytest.fixture
def flat(tiny_root, tmp_path):
    def make(**changes):
        return options(tiny_root, federation__clients=5, **changes) | {"run.directory": str(tmp_path / "runs")}

    return make


@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_broken_updates_are_counted_and_never_averaged(flat, fault):
    plan = FaultPlan(0, 5, **{fault: 0.4})
    path = run_in_memory(flat(federation__minimum=1), client=FaultyClient(plan))
    expected = [sum(plan.broken(i, line["round"]) == fault for i in range(5)) for line in rounds(path)]
    assert [line["rejected"] for line in rounds(path)] == expected
    assert sum(expected) > 0
    assert all(np.isfinite(value).all() for value in adapter(path).values())


@pytest.mark.slow
def test_a_lie_hides_behind_the_mask_and_is_told_all_the_same(flat):
    honest = adapter(run_in_memory(flat(secagg__enabled=True, run__id="honest")))
    client = FaultyClient(FaultPlan(0, 5, malicious=0.4, malice="sign-flip"))
    path = run_in_memory(flat(secagg__enabled=True, run__id="lied"), client=client)
    assert all(line["survivors"] == 5 for line in rounds(path))
    assert max(np.abs(honest[name] - value).max() for name, value in adapter(path).items()) > 1e-2


def test_a_plan_without_faults_changes_no_bit(flat):
    honest = adapter(run_in_memory(flat(run__id="honest")))
    path = run_in_memory(flat(run__id="plan"), client=FaultyClient(FaultPlan(0, 5)))
    assert all(np.array_equal(honest[name], value) for name, value in adapter(path).items())


def test_a_stale_update_is_the_one_of_the_round_before(flat):
    """With every device stale from round 2 on, each round adds what the first one gave."""
    client = FaultyClient(FaultPlan(0, 5, stale=1.0))
    one = adapter(run_in_memory(flat(run__id="one", federation__rounds=1)))
    path = run_in_memory(flat(run__id="stale", federation__rounds=2), client=client)
    two = adapter(run_in_memory(flat(run__id="two", federation__rounds=2)))
    stale = adapter(path)
    assert any(not np.array_equal(stale[name], two[name]) for name in two)
    fresh = adapter(run_in_memory(flat(run__id="first", federation__rounds=1), client=client))
    assert all(np.array_equal(one[name], fresh[name]) for name in one)  # nothing to repeat in the first round
