"""Every method against dense linear algebra, over random factors, ranks, scales, weights and numbers of clients.

Where a property should not hold, a test shows that it does not.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.base import Upload
from strategies.lora_fair import correction
from strategies.lowrank import best_factors, frobenius, orthonormal, recompress, truncated_svd
from strategies.ranks import cut, pad
from strategies.registry import make_strategy
from strategies.zero_padded import ZeroPadded
from tests.strategies.rounds import Bench
from umbel.errors import StrategyError

few = settings(max_examples=25, deadline=None)
EXACT = ("ffa-lora", "rolora", "fedsvd", "fed-sb")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("round_number", [1, 2])
@few
@given(case=Bench.cases())
def test_frozen_factor_methods_equal_the_average_of_products(name, round_number, case):
    strategy = make_strategy(name)
    new, _, clients = Bench.round(strategy, case, round_number=round_number)
    for i, pair in enumerate(case.spec.pairs):
        assert Bench.error(Bench.weight_of(strategy, case.spec, new, pair), Bench.average(case, clients, i)) < 1e-5


@few
@given(case=Bench.cases())
def test_fedex_equals_the_average_of_products(case):
    strategy = make_strategy("fedex-lora")
    state = None
    for round_number in (1, 2, 3):
        new, before, clients = Bench.round(strategy, case, state, round_number)
        for i, pair in enumerate(case.spec.pairs):
            moved = strategy.side(before.arrays).get(pair.module)
            side = 0 if moved is None else moved.b.astype(float) @ moved.a
            wanted = Bench.average(case, clients, i) + side
            assert Bench.error(Bench.weight_of(strategy, case.spec, new, pair), wanted) < 1e-5
        state = new


@few
@given(case=Bench.cases(mixed=True))
def test_flora_equals_the_average_of_products_at_mixed_ranks(case):
    strategy = make_strategy("flora")
    new, _, clients = Bench.round(strategy, case)
    for i, pair in enumerate(case.spec.pairs):
        assert Bench.error(Bench.weight_of(strategy, case.spec, new, pair), Bench.average(case, clients, i)) < 1e-5
        np.testing.assert_array_equal(case.spec.views(new.adapter)[pair.b.name], 0)
    again, _, clients = Bench.round(strategy, case, new, 2)
    for i, pair in enumerate(case.spec.pairs):
        wanted = Bench.weight_of(strategy, case.spec, new, pair) + Bench.average(case, clients, i)
        assert Bench.error(Bench.weight_of(strategy, case.spec, again, pair), wanted) < 1e-5
    assert not np.array_equal(again.adapter, new.adapter)


@few
@given(case=Bench.cases(mixed=True))
def test_flexlora_is_the_best_approximation_for_every_rank(case):
    strategy = make_strategy("flexlora")
    new, _, clients = Bench.round(strategy, case)
    for i, _pair in enumerate(case.spec.pairs):
        average = Bench.average(case, clients, i)
        for rank in range(1, case.spec.lora.rank + 1):
            spec = case.spec.with_rank(rank)
            received = strategy.download(new, spec, 2)
            assert Bench.error(Bench.product(spec, received, spec.pairs[i]), Bench.best(average, rank)) < 2e-4


@few
@given(case=Bench.cases(mixed=True))
def test_fedask_with_a_wide_sketch_is_flexlora(case):
    width = (len(case.ranks) + 1) * case.spec.lora.rank
    strategy = make_strategy("fedask", sketch=width, rank=case.spec.lora.rank)
    new, before, clients = Bench.round(strategy, case)
    for i, pair in enumerate(case.spec.pairs):
        # Clients send changes: what a smaller rank cut off at the download is no change.
        start = Bench.product(case.spec, before.adapter, pair)
        changes = sum(
            share * (Bench.product(s, local, s.pairs[i]) - Bench.product(s, received, s.pairs[i]))
            for share, (s, received, local) in zip(case.shares, clients, strict=True)
        )
        wanted = Bench.best(start + changes, case.spec.lora.rank)
        assert Bench.error(Bench.weight_of(strategy, case.spec, new, pair), wanted) < 5e-4


@few
@given(case=Bench.cases(), sketch=st.integers(4, 9))
def test_fedask_with_frozen_a_is_fedsvd_at_any_width(case, sketch):
    ask, svd = make_strategy("fedask", sketch=sketch, freeze_a=True), make_strategy("fedsvd")
    one, _, _ = Bench.round(ask, case)
    two, _, _ = Bench.round(svd, case)
    for pair in case.spec.pairs:
        wanted = Bench.weight_of(svd, case.spec, two, pair)
        assert Bench.error(Bench.weight_of(ask, case.spec, one, pair), wanted) < 1e-4


def test_fedask_with_a_narrow_sketch_is_not_the_best_approximation():
    errors, best = [], []
    for seed in range(8):
        case = Bench.case(seed, clients=5, rank=3, shapes=((40, 30), (30, 40)), zero_b=True)
        strategy = make_strategy("fedask", sketch=3)
        new, _, clients = Bench.round(strategy, case)
        average = Bench.average(case, clients, 0)
        errors.append(Bench.error(Bench.weight_of(strategy, case.spec, new, case.spec.pairs[0]), average))
        best.append(Bench.error(Bench.best(average, 3), average))
    assert np.mean(errors) > 1.1 * np.mean(best)


@pytest.mark.parametrize("name", ["fedit", "flasc", "hetlora", "lora-fair", "flexlora"])
def test_inexact_methods_are_inexact(bench, name):
    case = bench.case(11, clients=4, shapes=((20, 20), (20, 20)))
    strategy = make_strategy(name)
    assert not strategy.facts.exact
    new, _, clients = bench.round(strategy, case)
    assert (
        bench.error(bench.weight_of(strategy, case.spec, new, case.spec.pairs[0]), bench.average(case, clients, 0))
        > 0.02
    )


@few
@given(case=Bench.cases())
def test_fedit_averages_the_factors(case):
    new, _, clients = Bench.round(make_strategy("fedit"), case)
    wanted = sum(share * local.astype(float) for share, (_, _, local) in zip(case.shares, clients, strict=True))
    np.testing.assert_allclose(new.adapter, wanted, atol=1e-5)


@few
@given(case=Bench.cases(mixed=True))
def test_padding_is_exact_and_cutting_undoes_it(case):
    for rank in set(case.ranks):
        client = case.spec.with_rank(rank)
        vector = Bench.fresh(client, case.seed)
        padded = pad(client, vector, case.spec)
        for i, pair in enumerate(case.spec.pairs):
            wanted = Bench.product(client, vector, client.pairs[i])
            assert Bench.error(Bench.product(case.spec, padded, pair), wanted) < 1e-6
        np.testing.assert_allclose(cut(case.spec, padded, client), vector, rtol=1e-5, atol=1e-6)


def test_padding_without_rescaling_would_be_wrong(bench):
    spec = bench.spec(rank=4)
    client = spec.with_rank(1)
    vector = bench.fresh(client, 0)
    padded = pad(client, vector, spec)
    assert spec.lora.scaling != client.lora.scaling
    raw = spec.views(padded)[spec.pairs[0].b.name][:, :1]
    assert not np.allclose(raw, client.views(vector)[spec.pairs[0].b.name])


@few
@given(case=Bench.cases(mixed=True))
def test_hetlora_weighs_by_the_norm_of_the_product(case):
    strategy = make_strategy("hetlora")
    new, _, clients = Bench.round(strategy, case)
    for i, pair in enumerate(case.spec.pairs):
        norms = np.array([np.linalg.norm(Bench.product(s, local, s.pairs[i])) for s, _, local in clients])
        weights = case.shares * norms / (case.shares * norms).sum()
        for name in (pair.a.name, pair.b.name):
            wanted = sum(
                w * case.spec.views(pad(s, local, case.spec))[name].astype(float)
                for w, (s, _, local) in zip(weights, clients, strict=True)
            )
            np.testing.assert_allclose(case.spec.views(new.adapter)[name], wanted, atol=1e-5)


@few
@given(case=Bench.cases(clients=st.integers(2, 5)), penalty=st.sampled_from([0.0, 0.01, 0.5]))
def test_lora_fair_lowers_its_objective_and_no_step_lowers_it_further(case, penalty):
    fair, plain = make_strategy("lora-fair", penalty=penalty), make_strategy("fedit")
    new, _, clients = Bench.round(fair, case)
    old, _, _ = Bench.round(plain, case)
    spec, scaling = case.spec, case.spec.lora.scaling
    for i, pair in enumerate(spec.pairs):
        m = Bench.average(case, clients, i) / scaling
        a, b0 = (spec.views(old.adapter)[t.name].astype(float) for t in (pair.a, pair.b))
        b = spec.views(new.adapter)[pair.b.name].astype(float)
        ridge = penalty * (a * a).sum() / a.shape[0]

        def objective(candidate, m=m, a=a, b0=b0, ridge=ridge):
            return ((m - candidate @ a) ** 2).sum() + ridge * ((candidate - b0) ** 2).sum()

        assert objective(b) <= objective(b0) * (1 + 1e-6)
        nudge = np.random.default_rng(case.seed).standard_normal(b.shape)
        for step in (1e-2, -1e-2):
            assert objective(b) <= objective(b + step * nudge) + 1e-6


def test_lora_fair_with_a_huge_penalty_is_fedit():
    rng = np.random.default_rng(0)
    target, a, b = rng.standard_normal((6, 3)), rng.standard_normal((3, 5)), rng.standard_normal((6, 3))
    assert np.abs(correction(target, a, b, 1e9)).max() < 1e-6
    assert np.abs(correction(target, a, b, 0.01)).max() > 0.01
    assert np.isfinite(correction(target, np.zeros((3, 5)), b, 0.0)).all()


@pytest.mark.parametrize("name", ["ffa-lora", "rolora", "fedsvd"])
@pytest.mark.parametrize("round_number", [1, 2])
@few
@given(case=Bench.cases(mixed=True))
def test_zero_padded_changes_are_the_exact_average_of_changes(name, round_number, case):
    strategy = ZeroPadded(make_strategy(name), case.spec.lora.rank)
    new, before, clients = Bench.round(strategy, case, round_number=round_number)
    for i, pair in enumerate(case.spec.pairs):
        change = sum(
            share * (Bench.product(s, local, s.pairs[i]) - Bench.product(s, received, s.pairs[i]))
            for share, (s, received, local) in zip(case.shares, clients, strict=True)
        )
        wanted = Bench.weight_of(strategy, case.spec, before, pair) + change
        assert Bench.error(Bench.weight_of(strategy, case.spec, new, pair), wanted) < 1e-5


def test_fedsvd_leaves_orthonormal_rows_even_while_b_is_zero(bench):
    case = bench.case(3, zero_b=True)
    strategy = make_strategy("fedsvd")
    state = strategy.initial(case.spec, case.adapter)
    up = strategy.upload_spec(case.spec, 1)
    state = strategy.step(case.spec, up.zeros(), state, 1)
    for pair in case.spec.pairs:
        a = case.spec.views(state.adapter)[pair.a.name]
        np.testing.assert_allclose(a @ a.T, np.eye(pair.rank), atol=1e-5)


def test_rolora_takes_turns_and_fedsa_sends_no_b(bench):
    spec = bench.spec()
    rolora, fedsa = make_strategy("rolora"), make_strategy("fedsa-lora")
    odd, even = rolora.trainable(spec, 1), rolora.trainable(spec, 2)
    assert all(p.b.name in odd and p.a.name not in odd for p in spec.pairs)
    assert all(p.a.name in even and p.b.name not in even for p in spec.pairs)
    assert not any(".lora_B." in t.name for t in fedsa.upload_spec(spec, 1))


def test_personal_parts_come_back_and_never_travel(bench):
    for name in ("fedsa-lora", "feddpa"):
        strategy = make_strategy(name)
        case = bench.case(5, clients=2, rank=4)
        state = strategy.initial(case.spec, case.adapter)
        spec, received, local = bench.clients(strategy, case, state, 1)[0]
        kept = strategy.keep(spec, local, 1)
        assert set(kept) == strategy.personal(spec, 1)
        again = strategy.restore(spec, received, kept, 2)
        if name == "fedsa-lora":
            b = spec.pairs[0].b.name
            np.testing.assert_array_equal(spec.views(again)[b], spec.views(local)[b])
        else:
            b, shared = spec.pairs[0].b.name, strategy.shared_rank(spec)
            np.testing.assert_array_equal(spec.views(again)[b][:, shared:], spec.views(local)[b][:, shared:])
            np.testing.assert_array_equal(spec.views(again)[b][:, :shared], spec.views(received)[b][:, :shared])
            assert not spec.views(state.adapter)[b][:, shared:].any()
        other = spec.flatten({n: v if n in kept else v * 0 for n, v in spec.views(local).items()})
        if name == "fedsa-lora":
            assert not strategy.upload(spec, other, spec.zeros(), 1).any()
        mismatched = {n: np.ones((1, 1), np.float32) for n in kept}
        np.testing.assert_array_equal(strategy.restore(spec, received, mismatched, 2), received)


def test_flasc_mask_is_common_and_moves(bench):
    strategy = make_strategy("flasc", density=0.3)
    case = bench.case(5, zero_b=True)
    state = strategy.initial(case.spec, case.adapter)
    one, two = (strategy.mask(case.spec, state.adapter, r) for r in (1, 2))
    again = make_strategy("flasc", density=0.3).mask(case.spec, state.adapter.copy(), 1)
    for tensor in case.spec:
        np.testing.assert_array_equal(one[tensor.name], again[tensor.name])
        assert len(set(one[tensor.name])) == len(one[tensor.name]) == -(-3 * tensor.size // 10)
    assert any(not np.array_equal(one[n], two[n]) for n in one)
    upload = strategy.upload(case.spec, state.adapter + 1, state.adapter, 1)
    assert upload.size < 0.35 * case.spec.size
    new = strategy.step(case.spec, upload, state, 1)
    changed = np.flatnonzero(new.adapter != state.adapter).size
    assert changed == upload.size


def test_bad_options_and_ranks_are_refused(bench):
    for name, options in (
        ("flasc", {"density": 0}),
        ("flasc", {"explore": 2}),
        ("lora-fair", {"penalty": -1}),
        ("lora-fair", {"penalty": float("nan")}),
        ("fedask", {"sketch": -1}),
    ):
        with pytest.raises(StrategyError):
            make_strategy(name, **options)
    spec = bench.spec(rank=1)
    with pytest.raises(StrategyError, match="split"):
        make_strategy("feddpa").initial(spec, bench.fresh(spec, 0))
    wide = bench.spec(rank=9)
    with pytest.raises(StrategyError, match="orthonormal"):
        make_strategy("fed-sb").initial(wide, bench.fresh(wide, 0))
    spec = bench.spec()
    for name in ("fedex-lora", "lora-fair"):
        state = make_strategy(name).initial(spec, bench.fresh(spec, 0))
        with pytest.raises(StrategyError, match="one rank"):
            make_strategy(name).step_individual(spec, [Upload(spec.with_rank(2).zeros(), 1.0, 2)], state, 1)
    state = make_strategy("flora").initial(spec, bench.fresh(spec, 0))
    with pytest.raises(StrategyError, match="expected"):
        make_strategy("flora").step_individual(spec, [Upload(spec.zeros(), 1.0, 2)], state, 1)


@pytest.mark.parametrize("name", ["flora", "fedex-lora"])
def test_a_side_term_never_outgrows_its_layer_and_stays_exact(bench, name):
    """Four rounds of five clients at rank 3 would stack to 60 and more; min(out, in) holds them all."""
    case = bench.case(4, clients=5, shapes=((9, 7), (6, 14)))
    strategy, state = make_strategy(name), None
    wanted = [0.0 for _ in case.spec.pairs]
    for round_number in range(1, 5):
        new, before, clients = bench.round(strategy, case, state, round_number)
        for i, pair in enumerate(case.spec.pairs):
            moved = strategy.side(before.arrays).get(pair.module)
            wanted[i] = bench.average(case, clients, i) + (0 if moved is None else moved.b.astype(float) @ moved.a)
            term = strategy.side(new.arrays)[pair.module]
            assert term.a.shape[0] <= min(pair.b.shape[0], pair.a.shape[1])
            assert bench.error(bench.weight_of(strategy, case.spec, new, pair), wanted[i]) < 1e-5
        state = new


def test_capped_side_terms_keep_the_best_part(bench):
    case = bench.case(2, clients=4, shapes=((20, 20), (20, 20)))
    strategy = make_strategy("flora", side_rank=5)
    new, _, clients = bench.round(strategy, case)
    for i, pair in enumerate(case.spec.pairs):
        term = strategy.side(new.arrays)[pair.module]
        assert term.a.shape == (5, 20)
        assert bench.error(term.b.astype(float) @ term.a, bench.best(bench.average(case, clients, i), 5)) < 1e-5


@few
@given(
    seed=st.integers(0, 1000),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    out=st.integers(2, 12),
    inner=st.integers(2, 12),
    rank=st.integers(1, 6),
)
def test_lowrank_svd_is_the_dense_one(seed, ranks, out, inner, rank):
    rng = np.random.default_rng(seed)
    pairs = [(rng.standard_normal((out, r)), rng.standard_normal((r, inner))) for r in ranks]
    dense = sum(b @ a for b, a in pairs)
    u, s, vt = truncated_svd(pairs, rank)
    np.testing.assert_allclose(s, np.linalg.svd(dense)[1][: len(s)], atol=1e-9)
    np.testing.assert_allclose((u * s) @ vt, Bench.best(dense, rank), atol=1e-6)
    b, a = recompress(pairs)
    np.testing.assert_allclose(b @ a, dense, atol=1e-5)
    assert b.shape[1] <= min(out, inner, sum(ranks))
    assert frobenius(*pairs[0]) == pytest.approx(np.linalg.norm(pairs[0][0] @ pairs[0][1]))


def test_large_cores_take_the_partial_path_and_agree():
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((200, 8)), rng.standard_normal((8, 190))) for _ in range(20)]
    dense = sum(b @ a for b, a in pairs)
    u, s, vt = truncated_svd(pairs, 8)
    np.testing.assert_allclose(s, np.linalg.svd(dense)[1][:8], rtol=1e-8)
    np.testing.assert_allclose((u * s) @ vt, Bench.best(dense, 8), atol=1e-5)
    same = [pairs[0]] * 20
    u, s, vt = truncated_svd(same, 8)
    np.testing.assert_allclose((u * s) @ vt, 20 * pairs[0][0] @ pairs[0][1], atol=1e-5)


def test_zero_sums_give_zero_b_and_usable_a():
    old = np.random.default_rng(0).standard_normal((3, 6))
    b, a = best_factors([(np.zeros((5, 2)), np.zeros((2, 6)))], 3, 2.0, old)
    assert not b.any()
    np.testing.assert_allclose(a @ a.T, np.eye(3), atol=1e-6)
    assert np.linalg.matrix_rank(np.concatenate([a, old]), tol=1e-4) == 3
    b, a = recompress([(np.zeros((5, 2)), np.zeros((2, 6)))])
    assert b.shape == (5, 0)
    q = orthonormal(6, 3, [1, 2])
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(q, orthonormal(6, 3, [1, 2]))
