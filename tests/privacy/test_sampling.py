import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.noise import FixedNoise
from privacy.plan import Mechanism, Place, PrivacyPlan, Relation, Sampler, Unit
from privacy.sampling import (
    CyclicSampler,
    FixedSizeSampler,
    FullSampler,
    PoissonSampler,
    ShuffledSampler,
    sampler_for,
)
from umbel.errors import PlanError


def source(seed: int = 3) -> FixedNoise:
    return FixedNoise(seed, for_tests=True)


@given(n=st.integers(0, 80), q=st.floats(0, 1), seed=st.integers(0, 1000))
def test_draws_are_ascending_unique_and_in_range(n: int, q: float, seed: int) -> None:
    size = int(q * n)
    samplers = [PoissonSampler(n, q, source(seed)), FixedSizeSampler(n, size, source(seed)), FullSampler(n)]
    for sampler in samplers:
        for batch in sampler.batches(3):
            assert batch.dtype == np.int64
            assert np.all(np.diff(batch) > 0)
            assert batch.size == 0 or (batch[0] >= 0 and batch[-1] < n)
    assert FixedSizeSampler(n, size, source(seed)).draw().size == size


def test_poisson_sizes_are_binomial_and_members_independent() -> None:
    sampler = PoissonSampler(40, 0.1, source())
    member = np.zeros((20_000, 40), dtype=bool)
    for row, batch in zip(member, sampler.batches(len(member)), strict=True):
        row[batch] = True
    sizes = np.bincount(member.sum(1), minlength=41)
    expected = stats.binom.pmf(np.arange(41), 40, 0.1) * len(member)
    kept = expected > 8
    assert stats.chisquare(sizes[kept], expected[kept] * sizes[kept].sum() / expected[kept].sum()).pvalue > 1e-4
    assert np.abs(member.mean(0) - 0.1).max() < 5 * np.sqrt(0.09 / len(member))
    together = (member[:, 0] & member[:, 1]).mean()
    assert together == pytest.approx(0.01, abs=5 * np.sqrt(0.01 / len(member)))
    assert sizes[0] > 0, "an empty batch is a draw like any other"


def test_edge_rates() -> None:
    assert PoissonSampler(10, 0.0).draw().size == 0
    assert PoissonSampler(10, 1.0).draw().tolist() == list(range(10))
    assert PoissonSampler(0, 0.5).draw().size == 0
    assert PoissonSampler(650, 64 / 650).expected == pytest.approx(64)


def test_fixed_size_subsets_are_uniform() -> None:
    sampler = FixedSizeSampler(5, 2, source())
    seen: dict[tuple[int, ...], int] = {}
    for batch in sampler.batches(5000):
        seen[tuple(batch)] = seen.get(tuple(batch), 0) + 1
    assert len(seen) == 10
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


@given(n=st.integers(0, 60), period=st.integers(1, 9), epochs=st.integers(1, 3))
def test_every_epoch_holds_every_index_once(n: int, period: int, epochs: int) -> None:
    for sampler in (ShuffledSampler(n, period, source()), CyclicSampler(n, period, b"run")):
        for _ in range(epochs):
            batches = list(sampler.batches(period))
            assert sorted(np.concatenate(batches).tolist()) == list(range(n))
        assert sampler.expected == n / period


def test_adding_one_index_leaves_the_others_where_they_are() -> None:
    few = list(CyclicSampler(30, 4, b"run").batches(4))
    more = list(CyclicSampler(31, 4, b"run").batches(4))
    assert sum(len(b) - len(a) for a, b in zip(few, more, strict=True)) == 1
    assert all(set(a) <= set(b) for a, b in zip(few, more, strict=True))


def test_cyclic_order_repeats_and_continues_in_another_process() -> None:
    whole = list(CyclicSampler(50, 5, b"run").batches(15))
    assert all(np.array_equal(whole[t], whole[t + 5]) for t in range(10))
    resumed = list(CyclicSampler(50, 5, b"run", start=7).batches(8))
    assert all(np.array_equal(a, b) for a, b in zip(whole[7:], resumed, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(whole, CyclicSampler(50, 5, b"x").batches(5), strict=False))


def test_shuffled_epochs_differ() -> None:
    sampler = ShuffledSampler(50, 5, source())
    first, second = list(sampler.batches(5)), list(sampler.batches(5))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        (Sampler.POISSON, PoissonSampler),
        (Sampler.FIXED_SIZE, FixedSizeSampler),
        (Sampler.SHUFFLED, ShuffledSampler),
        (Sampler.CYCLIC, CyclicSampler),
    ],
)
def test_the_plan_names_the_sampler(sampler: Sampler, kind: type) -> None:
    plan = PrivacyPlan(
        Unit.EXAMPLE, Relation.REPLACE_ONE, sampler, 64 / 650, 100, 1.0, 1.0, Place.STEP, 1e-5, 8.0,
        mechanism=Mechanism.BANDED if sampler is Sampler.CYCLIC else Mechanism.GAUSSIAN, population=650,
    )  # fmt: skip
    drawn = sampler_for(plan, key=b"run", start=3, source=source())
    assert type(drawn) is kind
    assert drawn.n == 650
    sizes = [len(batch) for batch in drawn.batches(110)]
    assert np.mean(sizes) == pytest.approx(drawn.expected, rel=0.05)
    assert drawn.expected <= 64 + 1e-9, "never more often than was accounted"
    with pytest.raises(PlanError, match="population"):
        sampler_for(dataclasses.replace(plan, population=None))


@pytest.mark.parametrize("q", [-0.1, 1.01, float("nan")])
def test_impossible_rates_are_refused(q: float) -> None:
    with pytest.raises(PlanError, match="sampling rate"):
        PoissonSampler(10, q)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(PlanError, match="lower the batch"):
        FixedSizeSampler(3, 4)
    with pytest.raises(PlanError, match="at least 1"):
        ShuffledSampler(3, 0)
    with pytest.raises(PlanError, match="at least 0"):
        FullSampler(-1)
