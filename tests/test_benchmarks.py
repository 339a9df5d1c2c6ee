"""What the benchmark of strategies measures about an aggregate."""

import json

import numpy as np
import pytest

from benchmarks.cells import Cell, Results, mean_rows
from benchmarks.observed import Seen, aggregate_error, products
from strategies.registry import make_strategy
from umbel.adapter import AdapterSpec, LoraShape
from umbel.side import SideTerm, write_side

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 5), "m.lora_B.weight": (4, 2)}, LoraShape(2, 4.0))


def trained(strategy, clients, seed=0):
    """Clients that moved what their strategy trains, and the aggregate of their uploads."""
    generator = np.random.default_rng(seed)
    start = generator.normal(size=SPEC.size).astype(np.float32)
    seen, total = [], 0.0
    for _ in range(clients):
        local = start.copy()
        for name, view in SPEC.views(local).items():
            if name in strategy.trainable(SPEC, 1):
                view += generator.normal(size=view.shape).astype(np.float32)
        seen.append(Seen(start, {}, local, {}))
        total = total + strategy.upload(SPEC, local, start, 1)
    state = strategy.step(SPEC, (total / clients).astype(np.float32), strategy.initial(SPEC, start), 1)
    return seen, state


def test_an_exact_method_has_no_error_and_fedit_has_some():
    seen, state = trained(make_strategy("ffa-lora"), 4)
    assert aggregate_error(SPEC, seen, state.adapter, state.arrays) < 1e-6
    seen, state = trained(make_strategy("fedit"), 4)
    assert aggregate_error(SPEC, seen, state.adapter, state.arrays) > 0.1


def test_an_aggregate_that_learned_nothing_has_error_one():
    seen, _ = trained(make_strategy("fedit"), 3)
    assert aggregate_error(SPEC, seen, seen[0].received, {}) == pytest.approx(1.0)
    still = [Seen(seen[0].received, {}, seen[0].received, {})]
    assert np.isnan(aggregate_error(SPEC, still, seen[0].received, {}))


def test_side_terms_count_as_part_of_the_product():
    vector = np.random.default_rng(1).normal(size=SPEC.size).astype(np.float32)
    a, b = np.ones((1, 5), np.float32), np.full((4, 1), 2.0, np.float32)
    arrays = write_side({"m": SideTerm(a, b)})
    gap = products(SPEC, vector, arrays)["m"] - products(SPEC, vector, {})["m"]
    np.testing.assert_allclose(gap, np.full((4, 5), 2.0), atol=1e-6)


def test_results_are_kept_by_line_and_not_run_again(tmp_path):
    one, other = Cell({"strategy": "a"}, {"x": 1}), Cell({"strategy": "a"}, {"x": 2})
    results = Results(tmp_path / "deep" / "results.jsonl")
    assert results.get(one) is None
    results.put(one, {"accuracy": 0.5})
    assert Results(results.path).get(one)["accuracy"] == 0.5
    assert Results(results.path).get(other) is None
    assert json.loads(results.path.read_text())["strategy"] == "a"


def test_means_need_every_seed():
    rows = [{"accuracy": 0.5, "aggregate_error": None}, {"accuracy": 0.7, "aggregate_error": None}]
    assert dict(mean_rows(rows, ("accuracy", "aggregate_error"))) == {"accuracy": 0.6, "aggregate_error": None}
