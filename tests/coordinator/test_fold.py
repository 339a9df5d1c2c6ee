"""Partial sums: whatever the parts and wherever they were made, the same bits."""

import json
import pickle

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from coordinator.accumulator import ExactAccumulator
from coordinator.collect.base import Broadcast, Collected
from coordinator.collect.fold import Fold, FoldPlan
from coordinator.courier import Reply
from coordinator.population import Participant
from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape
from umbel.errors import AdapterError

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 5), "m.lora_B.weight": (5, 2)}, LoraShape(2, 4.0))
CLIENTS = 9


def plan(**options):
    members = [Participant(node, f"s{node}", 2) for node in range(CLIENTS)]
    return FoldPlan.of(members, Broadcast(1, SPEC, lambda _r: (SPEC, SPEC.zeros()), SPEC), **options)


def reply(node, update=None, spec_hash=SPEC.hash, **metrics):
    if update is None:
        update = np.random.default_rng(node).normal(size=SPEC.size).astype(np.float32)
    told = {"examples": 1.0 + node, "seen": 3.0, "loss": 0.1 * node} | metrics
    return Reply(node, wire.pack_train_reply(wire.TrainReply(spec_hash, update, told)))


def folded(order, cuts, **options):
    """One fold, made of parts of the clients in ``order``, cut at ``cuts``; each part travels."""
    whole = Fold(plan(**options))
    for start, stop in zip([0, *cuts], [*cuts, len(order)], strict=True):
        part = Fold(plan(**options))
        for node in order[start:stop]:
            part.take(reply(node))
        whole.merge(pickle.loads(pickle.dumps(part)))
    return whole.fill(Collected(), CLIENTS)


@given(st.permutations(range(CLIENTS)), st.lists(st.integers(0, CLIENTS), max_size=4).map(sorted), st.booleans())
def test_order_and_parts_do_not_matter(order, cuts, by_examples):
    found, alone = (folded(o, c, by_examples=by_examples) for o, c in ((order, cuts), (range(CLIENTS), [])))
    assert np.array_equal(found.mean, alone.mean)
    assert found.survivors == alone.survivors
    assert found.metrics == alone.metrics
    assert (found.missing, found.bytes_up) == (0, CLIENTS * SPEC.size * 4)


def test_each_update_is_judged_by_itself():
    fold = Fold(plan(by_examples=True))
    fold.take(reply(0))
    fold.take(reply(1, update=np.full(SPEC.size, np.nan, dtype=np.float32)))
    fold.take(reply(2, update=np.zeros(3, dtype=np.float32)))
    fold.take(reply(3, spec_hash="other"))
    fold.take(reply(4, examples=0.0))
    fold.take(reply(5, update=np.full(SPEC.size, 1e8, dtype=np.float32)))
    fold.take(Reply(6, RecordDict()))
    fold.take(Reply(7, None, wire.Refusal(80, "no")))
    found = fold.fill(Collected(), CLIENTS)
    assert found.survivors == ["s0"]
    assert sum(found.rejected.values()) == 7
    assert found.missing == 1
    alone = ExactAccumulator(SPEC.size, unit=4096.0)
    alone.add(np.random.default_rng(0).normal(size=SPEC.size).astype(np.float32), 1.0)
    assert np.array_equal(found.mean, alone.mean())


def test_nobody_answers():
    found = Fold(plan()).fill(Collected(), CLIENTS)
    assert (found.mean, found.survivors, found.missing, found.metrics) == (None, [], CLIENTS, {})


def test_a_fold_travels_as_json_and_one_vector():
    fold = Fold(plan())
    for node in range(4):
        fold.take(reply(node))
    head, values = fold.export()
    again = Fold.restore(plan(), json.loads(json.dumps(head)), values)
    again.take(reply(4))
    fold.take(reply(4))
    assert np.array_equal(again.accumulator.mean(), fold.accumulator.mean())
    assert again.fill(Collected(), 5).metrics == fold.fill(Collected(), 5).metrics


@pytest.mark.parametrize(
    "values", [np.zeros(3, dtype=np.float32), np.zeros((2, 2)), np.array([1.0, np.nan]), np.array([np.inf])]
)
def test_a_sum_that_cannot_be_read_is_refused(values):
    with pytest.raises(AdapterError, match="partial sum cannot be read"):
        ExactAccumulator.restore({"unit": 1.0, "weight": 1.0, "bound": 1.0, "count": 1.0}, values)


def test_sums_of_another_layout_do_not_merge():
    for other in (ExactAccumulator(4), ExactAccumulator(3, unit=2.0)):
        with pytest.raises(AdapterError, match="another layout"):
            ExactAccumulator(3).merge(other)


def test_sums_that_leave_the_exact_range_do_not_merge():
    one, two = ExactAccumulator(1), ExactAccumulator(1)
    for accumulator in (one, two):
        accumulator.add(np.array([5000.0], dtype=np.float32), 1.0)
    before = one.total()
    with pytest.raises(AdapterError, match="too large"):
        one.merge(two)
    assert np.array_equal(one.total(), before)
    assert one.count == 1


def test_a_plan_carries_no_vector():
    with pytest.raises(AdapterError, match="left out"):
        pickle.loads(pickle.dumps(plan())).broadcast.adapter(2)
