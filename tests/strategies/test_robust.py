import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import Upload
from strategies.mean import weighted_mean
from strategies.registry import make_strategy
from strategies.robust.krum import Krum, MultiKrum, scores
from strategies.robust.robust import RULES, Robust, assign_groups
from strategies.robust.rule import gram, squared_distances
from umbel.errors import StrategyError


def uploads(vectors):
    return [Upload(np.asarray(v, np.float32), 1.0, 1) for v in vectors]


def attacked(n, bad, size=40, kind="scaled", seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(size)
    good = truth + 0.1 * rng.standard_normal((n - bad, size))
    evil = {"flipped": -5 * truth, "scaled": 100 * truth, "random": 30 * rng.standard_normal(size)}[kind]
    return truth, np.concatenate([good, np.tile(evil, (bad, 1))])


@pytest.mark.parametrize("kind", ["flipped", "scaled", "random"])
@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_withstand_their_share_where_the_mean_does_not(name, kind):
    truth, vectors = attacked(15, 3, kind=kind)
    found = RULES[name](0.2).combine(uploads(vectors))
    mean = weighted_mean(uploads(vectors))
    far, near = np.linalg.norm(mean - truth), np.linalg.norm(found - truth)
    assert far > 0.9 * np.linalg.norm(truth)
    assert near < (0.6 if name == "norm-bound" else 0.15) * np.linalg.norm(truth)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"norm-bound"}))
def test_identical_uploads_come_back(name):
    vector = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    np.testing.assert_allclose(RULES[name](0.2).combine(uploads([vector] * 15)), vector, atol=1e-6)


@pytest.mark.parametrize("name", sorted(RULES))
def test_order_does_not_matter_and_bad_input_is_refused(name):
    _, vectors = attacked(11, 2)
    rule = RULES[name](0.1)
    np.testing.assert_allclose(rule.combine(uploads(vectors)), rule.combine(uploads(vectors[::-1])), atol=1e-5)
    with pytest.raises(StrategyError, match="no uploads"):
        rule.combine([])
    with pytest.raises(StrategyError, match="no uploads"):
        rule.combine([Upload(np.zeros(3, np.float32), 0.0, 1)])
    with pytest.raises(StrategyError, match="finite"):
        rule.combine(uploads([*vectors, np.full(40, np.nan)]))
    with pytest.raises(StrategyError, match="length"):
        rule.combine([*uploads(vectors), *uploads([np.zeros(3)])])
    with pytest.raises(StrategyError, match="corrupt share"):
        RULES[name](0.5)


@pytest.mark.parametrize(
    ("name", "n"),
    [("krum", 4), ("multi-krum", 4), ("bulyan", 14), ("median", 2), ("trimmed-mean", 2), ("geometric-median", 2)],
)
def test_too_few_uploads_are_refused(name, n):
    with pytest.raises(StrategyError, match="needs at least"):
        RULES[name](0.2).combine(uploads(np.ones((n, 3))))
    RULES[name](0.2).combine(uploads(np.ones((n + 1, 3))))


@given(st.integers(0, 1000), st.integers(5, 9))
def test_krum_agrees_with_the_definition(seed, n):
    vectors = np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)
    dense = ((vectors[:, None].astype(float) - vectors[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(list(vectors)), dense, atol=1e-9)
    best = [sum(sorted(np.delete(dense[i], i))[: n - 3]) for i in range(n)]
    np.testing.assert_allclose(scores(dense, 1), best)
    np.testing.assert_array_equal(Krum(1 / n).combine(uploads(vectors)), vectors[int(np.argmin(best))])
    chosen = np.argsort(best)[: n - 1]
    np.testing.assert_allclose(MultiKrum(1 / n).combine(uploads(vectors)), vectors[chosen].mean(0), atol=1e-6)


@given(st.integers(0, 1000))
def test_geometric_median_has_the_least_sum_of_distances(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((7, 5)).astype(np.float32)
    found = RULES["geometric-median"](0.2).combine(uploads(vectors)).astype(float)

    def cost(z):
        return np.linalg.norm(vectors - z, axis=1).sum()

    for _ in range(10):
        assert cost(found) <= cost(found + 0.05 * rng.standard_normal(5)) + 1e-6
    assert cost(found) <= cost(vectors.mean(0)) + 1e-6


def test_distances_survive_a_large_common_offset():
    vectors = [np.full(10, 1000, np.float32) + np.float32(i) / 8 for i in range(4)]
    assert squared_distances(vectors)[0, 1] == pytest.approx(10 / 64, rel=1e-6)
    assert gram(vectors).shape == (4, 4)


def test_trimmed_mean_and_median_by_hand():
    vectors = [[1, 10], [2, 20], [3, 30], [4, 40], [500, -500]]
    np.testing.assert_array_equal(RULES["trimmed-mean"](0.2).combine(uploads(vectors)), [3, 20])
    np.testing.assert_array_equal(RULES["median"](0.2).combine(uploads(vectors)), [3, 20])


def test_norm_bound_scales_only_the_long_ones():
    rule = RULES["norm-bound"](0.2)
    np.testing.assert_allclose(rule.combine(uploads([[3, 0], [0, 1], [0, -1]])), [1 / 3, 0], atol=1e-7)


def test_robust_strategy_sees_uploads_and_refuses_sums(bench):
    strategy = Robust(make_strategy("ffa-lora"), RULES["median"](0.2))
    case = bench.case(1, clients=5)
    new, before, clients = bench.round(strategy, case)
    assert not strategy.facts.linear
    name = case.spec.pairs[0].b.name
    moved = [s.views(local)[name] - s.views(received)[name] for s, received, local in clients]
    wanted = case.spec.views(before.adapter)[name] + np.median(moved, axis=0)
    np.testing.assert_allclose(case.spec.views(new.adapter)[name], wanted, atol=1e-6)
    with pytest.raises(StrategyError, match="secure aggregation off"):
        strategy.step(case.spec, strategy.upload_spec(case.spec, 1).zeros(), before, 1)
    with pytest.raises(StrategyError, match="linear"):
        Robust(make_strategy("flora"), RULES["median"](0.2))


def test_group_sums_withstand_one_corrupt_client(bench):
    spec = bench.spec()
    strategy = Robust(make_strategy("fedit"), RULES["median"](0.2), groups=5)
    names = [f"c{i}" for i in range(20)]
    groups = assign_groups(names, 5, [0, 1])
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert {len(g) for g in groups} == {4}
    assert groups == assign_groups(names[::-1], 5, [0, 1])
    assert groups != assign_groups(names, 5, [0, 2])
    rng = np.random.default_rng(0)
    sent = {n: (1 + 0.01 * rng.standard_normal(spec.size)).astype(np.float32) for n in names}
    sent["c7"] = np.full(spec.size, -1e4, np.float32)
    sums = [Upload(np.mean([sent[n] for n in g], axis=0), float(len(g)), 0) for g in groups]
    state = strategy.initial(spec, spec.zeros())
    new = strategy.step_individual(spec, sums, state, 1)
    np.testing.assert_allclose(new.adapter, 1, atol=0.05)
    assert abs(weighted_mean(sums)[0] - 1) > 100
    for bad in (0, 21):
        with pytest.raises(StrategyError, match="groups"):
            assign_groups(names, bad, [0])
    with pytest.raises(StrategyError, match="repeats"):
        assign_groups(["a", "a"], 1, [0])
    with pytest.raises(StrategyError, match="groups"):
        Robust(make_strategy("fedit"), RULES["median"](0.2), groups=1)
