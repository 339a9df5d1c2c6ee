"""One contract, every strategy."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from strategies.base import StrategyState, Upload
from strategies.mean import weighted_mean
from strategies.part_weighted import PartWeighted
from strategies.proximal import Proximal
from strategies.registry import STRATEGIES, make_strategy
from strategies.server_optimizer import ServerOptimized, ServerOptimizer
from strategies.zero_padded import ZeroPadded
from umbel.errors import StrategyError

WRAPPED = {
    "padded": lambda: ZeroPadded(make_strategy("ffa-lora"), 3),
    "fedadam": lambda: ServerOptimized(make_strategy("fedit"), ServerOptimizer.FEDADAM),
    "fedavgm": lambda: ServerOptimized(make_strategy("rolora"), ServerOptimizer.FEDAVGM),
    "fedprox": lambda: Proximal(make_strategy("fedex-lora"), 0.1),
    "parts": lambda: PartWeighted(make_strategy("fedsvd")),
}
ALL = sorted(STRATEGIES) + sorted(WRAPPED)


def build(name):
    if name == "fedask":
        return make_strategy(name, rank=3)
    return WRAPPED[name]() if name in WRAPPED else make_strategy(name)


def mixed(strategy):
    return strategy.facts.heterogeneous_ranks


def weights(bench, strategy, case, state):
    return [bench.weight_of(strategy, case.spec, state, pair) for pair in case.spec.pairs]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_permutation_of_clients_changes_nothing(bench, name, seed):
    strategy = build(name)
    case = bench.case(seed, clients=4, mixed=mixed(strategy))
    one, _, _ = bench.round(strategy, case)
    two, _, _ = bench.round(strategy, case, order=[2, 0, 3, 1])
    for a, b in zip(weights(bench, strategy, case, one), weights(bench, strategy, case, two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_weights_count_only_relative_to_each_other(bench, name):
    strategy = build(name)
    case = bench.case(5, clients=3, mixed=mixed(strategy))
    one, _, _ = bench.round(strategy, case)
    two, _, _ = bench.round(strategy, case, weights=[w * 1000 for w in case.weights])
    other, _, _ = bench.round(strategy, case, weights=[case.weights[0] * 50, *case.weights[1:]])
    for a, b in zip(weights(bench, strategy, case, one), weights(bench, strategy, case, two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert max(np.abs(one.adapter - other.adapter)) > 1e-3


@pytest.mark.parametrize("name", sorted(set(ALL) - {"fedadam"}))
def test_a_single_client_returns_its_own_update(bench, name):
    strategy = build(name)
    case = bench.case(7, clients=1)
    new, before, [(spec, _received, local)] = bench.round(strategy, case)
    if name == "flasc":
        moved = np.flatnonzero(new.adapter - before.adapter)
        assert 0 < moved.size < spec.size
        np.testing.assert_allclose(new.adapter[moved], local[moved], atol=1e-6)
        return
    sent = strategy.restore(spec, local, {}, 1)
    if name in ("fedsa-lora", "feddpa"):
        up = strategy.upload_spec(spec, 1)
        for t in up:
            block = tuple(slice(0, n) for n in t.shape)
            np.testing.assert_allclose(
                spec.views(new.adapter)[t.name][block], spec.views(sent)[t.name][block], atol=1e-6
            )
        return
    for pair in spec.pairs:
        np.testing.assert_allclose(
            bench.weight_of(strategy, spec, new, pair), bench.product(spec, local, pair), atol=3e-5
        )
    other = "model.projector.weight"
    np.testing.assert_allclose(spec.views(new.adapter)[other], spec.views(local)[other], atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_zero_clients_and_zero_weights_are_refused(bench, name):
    strategy = build(name)
    case = bench.case(1, clients=2)
    state = strategy.initial(case.spec, case.adapter)
    with pytest.raises(StrategyError, match="at least one client"):
        strategy.step_individual(case.spec, [], state, 1)
    up = strategy.upload_spec(case.spec, 1)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(StrategyError, match="weights"):
            strategy.step_individual(case.spec, [Upload(up.zeros(), weight, 3)], state, 1)


@pytest.mark.parametrize("name", ALL)
def test_state_survives_a_checkpoint(bench, name):
    strategy = build(name)
    case = bench.case(3, clients=3)
    state, _, _ = bench.round(strategy, case)
    restored = StrategyState(load(save(state.arrays)))
    straight, _, _ = bench.round(strategy, case, state, round_number=2)
    resumed, _, _ = bench.round(build(name), case, restored, round_number=2)
    assert straight.arrays.keys() == resumed.arrays.keys()
    for key, array in straight.arrays.items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, resumed.arrays[key])


@pytest.mark.parametrize("name", ALL)
def test_vectors_keep_the_spec_and_inputs_are_not_changed(bench, name):
    strategy = build(name)
    case = bench.case(4, clients=3)
    state = strategy.initial(case.spec, case.adapter)
    frozen = {key: array.copy() for key, array in state.arrays.items()}
    new, _, clients = bench.round(strategy, case, state)
    case.spec.check(new.adapter)
    for key, array in frozen.items():
        np.testing.assert_array_equal(array, state.arrays[key])
    for spec, received, local in clients:
        case.spec.check(received)
        upload = strategy.upload(spec, local, received, 1)
        strategy.upload_spec(spec, 1).check(upload)
        assert upload.flags.c_contiguous
    assert strategy.upload_spec(case.spec, 1).hash == build(name).upload_spec(case.spec, 1).hash


@pytest.mark.parametrize("name", ALL)
def test_linear_methods_need_only_the_mean_and_others_say_so(bench, name):
    strategy = build(name)
    case = bench.case(6, clients=4)
    state = strategy.initial(case.spec, case.adapter)
    clients = bench.clients(strategy, case, state, 1)
    uploads = [
        Upload(strategy.upload(s, local, received, 1), w, s.lora.rank)
        for (s, received, local), w in zip(clients, case.weights, strict=True)
    ]
    if not strategy.facts.linear:
        with pytest.raises(StrategyError, match="secure aggregation off"):
            strategy.step(case.spec, weighted_mean(uploads), state, 1)
        return
    if strategy.passes == 2:
        with pytest.raises(StrategyError, match="between"):
            strategy.step(case.spec, strategy.pass_spec(case.spec, 1, 2).zeros(), state, 1)
        return
    mean = sum(w * u.vector.astype(float) for w, u in zip(case.shares, uploads, strict=True)).astype(np.float32)
    np.testing.assert_allclose(
        strategy.step(case.spec, mean, state, 1).adapter,
        strategy.step_individual(case.spec, uploads, state, 1).adapter,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", ALL)
def test_nothing_moves_when_nobody_moved(bench, name):
    strategy = build(name)
    case = bench.case(8, clients=3)
    state = strategy.initial(case.spec, case.adapter)
    before = weights(bench, strategy, case, state)
    uploads = [Upload(strategy.upload_spec(case.spec, 1).zeros(), w, 3) for w in case.weights]
    received = [(case.spec, state.adapter, state.adapter)] * 3
    new = bench.aggregate(strategy, case.spec, uploads, state, 1, received)
    for a, b in zip(before, weights(bench, strategy, case, new), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_several_rounds_stay_finite_and_trainable_names_exist(bench, name):
    strategy = build(name)
    case = bench.case(9, clients=3, mixed=mixed(strategy), zero_b=True)
    state = None
    for round_number in (1, 2, 3, 4):
        assert strategy.trainable(case.spec, round_number) <= set(case.spec.by_name)
        assert strategy.trainable(case.spec, round_number)
        state, _, _ = bench.round(strategy, case, state, round_number)
        assert all(np.isfinite(array).all() for array in state.arrays.values())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_mixed_ranks_are_bridged_or_refused(bench, name):
    strategy = build(name)
    case = bench.case(2, clients=2)
    state = strategy.initial(case.spec, case.adapter)
    small = case.spec.with_rank(2)
    if mixed(strategy):
        received = strategy.download(state, small, 1)
        small.check(received)
        with pytest.raises(StrategyError, match="rank"):
            strategy.download(state, case.spec.with_rank(4), 1)
    else:
        with pytest.raises(StrategyError, match="same LoRA rank"):
            strategy.download(state, small, 1)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_facts_are_complete(name):
    facts = STRATEGIES[name].facts
    assert "arXiv" in facts.paper
    assert facts.note.endswith(".")
    assert facts.up
    assert facts.down
    assert facts.linear or not facts.private


def test_unknown_names_and_options_are_refused():
    with pytest.raises(StrategyError, match="did you mean 'flexlora'"):
        make_strategy("flexlor")
    with pytest.raises(StrategyError, match="no option 'rnak'"):
        make_strategy("fedask", rnak=3)
