"""Server optimizers, regularisers, part weights, the asynchronous buffer."""

import numpy as np
import pytest

from strategies.base import Upload
from strategies.fedbuff import FedBuff, staleness_weight
from strategies.part_weighted import PartWeighted, part_of
from strategies.proximal import Proximal
from strategies.registry import make_strategy
from strategies.scaffold import Scaffold
from strategies.server_optimizer import ServerOptimized, ServerOptimizer
from strategies.zero_padded import ZeroPadded
from umbel.errors import StrategyError


@pytest.mark.parametrize("rule", list(ServerOptimizer))
def test_server_optimizers_follow_their_equations(bench, rule):
    spec = bench.spec()
    strategy = ServerOptimized(make_strategy("fedit"), rule, learning_rate=0.5, beta1=0.8, beta2=0.9, tau=0.1)
    state = strategy.initial(spec, bench.fresh(spec, 0))
    x, m, v = state.adapter.astype(float), np.zeros(spec.size), np.full(spec.size, 0.01)
    rng = np.random.default_rng(1)
    for round_number in (1, 2, 3):
        d = rng.standard_normal(spec.size).astype(np.float32)
        if rule is ServerOptimizer.FEDAVGM:
            m = 0.8 * m + d
            x = x + 0.5 * m
        else:
            m = 0.8 * m + 0.2 * d.astype(float)
            square = d.astype(float) ** 2
            if rule is ServerOptimizer.FEDADAGRAD:
                v = v + square
            elif rule is ServerOptimizer.FEDADAM:
                v = 0.9 * v + 0.1 * square
            else:
                v = v - 0.1 * square * np.sign(v - square)
            x = x + 0.5 * m / (np.sqrt(v) + 0.1)
        state = strategy.step(spec, d, state, round_number)
        np.testing.assert_allclose(state.adapter, x, atol=2e-5)


def test_fedavgm_without_momentum_is_the_method_itself(bench):
    case = bench.case(1)
    plain, _, _ = bench.round(make_strategy("fedit"), case)
    wrapped, _, _ = bench.round(ServerOptimized(make_strategy("fedit"), ServerOptimizer.FEDAVGM, beta1=0.0), case)
    np.testing.assert_allclose(plain.adapter, wrapped.adapter, atol=1e-6)


def test_server_optimizers_refuse_what_moves_under_them():
    for name in ("fedsvd", "flasc", "flexlora", "fedask"):
        with pytest.raises(StrategyError):
            ServerOptimized(make_strategy(name), ServerOptimizer.FEDADAM)
    with pytest.raises(StrategyError, match="positive"):
        ServerOptimized(make_strategy("fedit"), ServerOptimizer.FEDADAM, learning_rate=0)


def test_fedprox_adds_mu_times_the_distance(bench):
    spec = bench.spec()
    received = bench.fresh(spec, 0)
    client = Proximal(make_strategy("fedit"), 0.3).begin(spec, received, 1)
    assert client.hooked
    assert not Proximal(make_strategy("fedit"), 0.0).begin(spec, received, 1).hooked
    parameters, gradient = bench.fresh(spec, 1), bench.fresh(spec, 2)
    wanted = gradient + np.float32(0.3) * (parameters - received)
    client.gradient(spec.views(gradient), spec.views(parameters))
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    with pytest.raises(StrategyError):
        Proximal(make_strategy("fedit"), -1)


def _quadratic(strategy, spec, targets, rounds, steps=5, rate=0.1):
    """Local SGD on sum of D_k ||x - target_k||^2 / 2 with unlike curvatures; returns the final adapter."""
    state, kept = strategy.initial(spec, spec.zeros()), [{} for _ in targets]
    for round_number in range(1, rounds + 1):
        uploads = []
        for k, (curvature, target) in enumerate(targets):
            extras = strategy.extras(state, spec, round_number)
            client = strategy.begin(spec, strategy.download(state, spec, round_number), round_number, extras, kept[k])
            local = client.start.copy()
            for _ in range(steps):
                gradient = (curvature * (local - target)).astype(np.float32)
                client.gradient(spec.views(gradient), spec.views(local))
                local -= np.float32(rate) * gradient
                client.after_step(spec.views(local))
            uploads.append(Upload(client.finish(local, steps=steps, learning_rate=rate), 1.0, spec.lora.rank))
            kept[k] = client.keep(local)
        state = strategy.step_individual(spec, uploads, state, round_number)
    return state.adapter


def test_scaffold_reaches_the_optimum_that_drift_keeps_fedavg_from(bench):
    spec = bench.spec()
    rng = np.random.default_rng(0)
    targets = [(c, rng.standard_normal(spec.size).astype(np.float32)) for c in (0.2, 1.0, 3.0)]
    optimum = sum(c * t for c, t in targets) / sum(c for c, _ in targets)
    drifted = _quadratic(make_strategy("fedit"), spec, targets, 60)
    corrected = _quadratic(Scaffold(make_strategy("fedit")), spec, targets, 60)
    assert bench.error(drifted, optimum) > 0.1
    assert bench.error(corrected, optimum) < 1e-3


def test_scaffold_under_part_weights_and_personal_b(bench):
    spec = bench.spec()
    rng = np.random.default_rng(0)
    targets = [(c, rng.standard_normal(spec.size).astype(np.float32)) for c in (0.5, 1.0)]
    strategy = PartWeighted(Scaffold(make_strategy("fedsa-lora")))
    adapter = _quadratic(strategy, spec, targets, 40)
    optimum = sum(c * t for c, t in targets) / 1.5
    name = spec.pairs[0].a.name
    assert bench.error(spec.views(adapter)[name], spec.views(optimum)[name]) < 1e-2
    assert not spec.views(adapter)[spec.pairs[0].b.name].any()


def test_scaffold_refusals_and_no_steps(bench):
    spec = bench.spec()
    for inner in ("rolora", "fedsvd", "fed-sb", "feddpa", "fedask"):
        with pytest.raises(StrategyError):
            Scaffold(make_strategy(inner))
    with pytest.raises(StrategyError):
        Scaffold(ZeroPadded(make_strategy("fedit"), 3))
    with pytest.raises(StrategyError, match="participation"):
        Scaffold(make_strategy("fedit"), 0)
    strategy = Scaffold(make_strategy("fedit"))
    with pytest.raises(StrategyError, match="begin"):
        strategy.upload(spec, spec.zeros(), spec.zeros(), 1)
    client = strategy.begin(spec, bench.fresh(spec, 0), 1)
    assert not client.finish(client.start, steps=0, learning_rate=0.1).any()


def test_fed_sb_hooks_keep_b_in_its_columns_and_train_r(bench):
    spec, strategy = bench.spec(), make_strategy("fed-sb")
    state = strategy.initial(spec, bench.fresh(spec, 0))
    client = strategy.begin(spec, state.adapter, 1)
    local, rng = client.start.copy(), np.random.default_rng(0)
    r = {p.b.name: np.zeros((p.rank, p.rank)) for p in spec.pairs}
    for _ in range(3):
        gradient = rng.standard_normal(spec.size).astype(np.float32)
        for p in spec.pairs:
            r[p.b.name] -= 0.1 * strategy.basis(p).T @ spec.views(gradient)[p.b.name]
        client.gradient(spec.views(gradient), spec.views(local))
        local -= np.float32(0.1) * gradient
        client.after_step(spec.views(local))
    upload = strategy.upload_spec(spec, 1).views(client.finish(local, steps=3, learning_rate=0.1))
    for p in spec.pairs:
        np.testing.assert_allclose(upload[p.b.name], r[p.b.name], atol=1e-5)
        outside = rng.standard_normal(p.b.shape).astype(np.float32)
        view = {p.b.name: outside.copy()}
        client.after_step(view)
        assert np.linalg.norm(view[p.b.name]) < 0.9 * np.linalg.norm(outside)


@pytest.mark.parametrize("inner", ["fedit", "ffa-lora", "fedsvd"])
def test_a_missing_modality_does_not_drag_the_average(bench, inner):
    spec = bench.spec()
    plain, strategy = make_strategy(inner), PartWeighted(make_strategy(inner))
    state = strategy.initial(spec, bench.fresh(spec, 0))
    vision = [n for n in spec.by_name if part_of(n) == "vision" and n in strategy.trainable(spec, 1)]
    assert vision
    with_images = bench.train(plain, spec, state.adapter, 1, 5)
    without = bench.train(plain, spec, state.adapter, 1, 6)
    for name in vision:
        spec.views(without)[name][...] = spec.views(state.adapter)[name]
    pairs = [(with_images, 1.0), (without, 3.0)]
    mean = [Upload(strategy.upload(spec, v, state.adapter, 1), w, 3) for v, w in pairs]
    new = strategy.step_individual(spec, mean, state, 1)
    dragged = plain.step_individual(
        spec, [Upload(plain.upload(spec, v, state.adapter, 1), w, 3) for v, w in pairs], state, 1
    )
    for i, pair in enumerate(spec.pairs):
        first, second = bench.product(spec, with_images, pair), bench.product(spec, without, pair)
        found = bench.weight_of(strategy, spec, new, pair)
        if part_of(pair.module) == "vision":
            assert bench.error(found, first) < 1e-4
            assert bench.error(bench.weight_of(plain, spec, dragged, pair), first) > 0.05
        elif inner != "fedit":
            assert bench.error(found, 0.25 * first + 0.75 * second) < 1e-4
        assert i < 2


def test_a_part_that_nobody_trained_stays(bench):
    spec, strategy = bench.spec(), PartWeighted(make_strategy("fedit"))
    state = strategy.initial(spec, bench.fresh(spec, 0))
    up = strategy.upload_spec(spec, 1)
    new = strategy.step(spec, up.zeros(), state, 1)
    np.testing.assert_array_equal(new.adapter, state.adapter)
    assert part_of("model.multi_modal_projector.linear_1") == "projector"
    with pytest.raises(StrategyError):
        PartWeighted(make_strategy("fedit"), unit=0)
    with pytest.raises(StrategyError):
        PartWeighted(make_strategy("flexlora"))


def test_fedbuff_weighs_by_staleness_and_counts_nobody_twice():
    buffer = FedBuff(make_strategy("fedit"), goal=3, max_staleness=2, version=5)
    one = np.ones(2, np.float32)
    assert not buffer.add("a", 5, one, 2.0)
    assert not buffer.add("b", 3, one, 2.0)
    assert not buffer.add("c", 2, one, 2.0)
    assert buffer.dropped == 1
    assert not buffer.add("a", 4, 9 * one, 2.0)
    assert not buffer.add("b", 4, 7 * one, 2.0)
    assert len(buffer) == 2
    assert buffer.dropped == 3
    with pytest.raises(StrategyError, match="2 of 3"):
        buffer.take()
    assert buffer.add("c", 5, 3 * one, 1.0)
    with pytest.raises(StrategyError, match="full"):
        buffer.add("d", 5, one, 1.0)
    uploads = buffer.take()
    assert [u.vector[0] for u in uploads] == [1, 7, 3]
    assert [u.weight for u in uploads] == pytest.approx([2, 2 / np.sqrt(2), 1])
    assert buffer.version == 6
    assert len(buffer) == 0
    with pytest.raises(StrategyError, match="does not exist yet"):
        buffer.add("a", 7, one, 1.0)
    with pytest.raises(StrategyError, match="weight"):
        buffer.add("a", 6, one, float("nan"))
    assert not buffer.add("a", 6, one, 1.0)
    assert len(buffer.take(partial=True)) == 1
    assert staleness_weight(3) == 0.5


def test_fedbuff_refuses_methods_that_cannot_be_late():
    for name in ("rolora", "fedsvd", "flora", "fedask", "flasc"):
        with pytest.raises(StrategyError, match="late"):
            FedBuff(make_strategy(name), 3)
    with pytest.raises(StrategyError, match="goal"):
        FedBuff(make_strategy("fedit"), 0)
