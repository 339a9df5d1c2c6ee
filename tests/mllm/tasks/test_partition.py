from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.tasks import partition
from umbel.errors import DataError

Indices = npt.NDArray[np.int64]


@st.composite
def pools(draw: st.DrawFn) -> tuple[Indices, list[str], int, int]:
    """Groups of one to four examples with a label each, and a division that is possible."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=40))
    labels = draw(st.lists(st.sampled_from("abc"), min_size=len(sizes), max_size=len(sizes)))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    clients = draw(st.integers(1, min(6, len(sizes))))
    # Groups of at most 4: one more than the even share minus 4 can always be dealt.
    minimum = max(1, draw(st.integers(1, max(1, len(groups) // clients - 4))))
    return groups.astype(np.int64), labels, clients, minimum


def _check(parts: list[Indices], groups: Indices, clients: int, minimum: int) -> None:
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    owners: dict[int, int] = {}
    for client, part in enumerate(parts):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert len(part) >= minimum
        for group in groups[part]:
            assert owners.setdefault(int(group), client) == client, "an image lies at two clients"


@settings(max_examples=150, deadline=None)
@given(pool=pools(), seed=st.integers(0, 2**31), kind=st.sampled_from(["iid", "dirichlet", "by_label"]))
def test_every_example_is_in_exactly_one_part(pool: tuple[Indices, list[str], int, int], seed: int, kind: str) -> None:
    groups, labels, clients, minimum = pool

    def divide() -> list[Indices]:
        if kind == "iid":
            return partition.iid(groups, clients=clients, seed=seed, minimum=minimum)
        if kind == "dirichlet":
            return partition.dirichlet(groups, labels, clients=clients, seed=seed, minimum=minimum, alpha=0.1)
        return partition.by_label(groups, labels, clients=clients, seed=seed, minimum=minimum)

    first = divide()
    _check(first, groups, clients, minimum)
    assert all(np.array_equal(a, b) for a, b in zip(first, divide(), strict=True))


def _skew(alpha: float, seed: int) -> float:
    """Mean over clients of the share of a client's most frequent label; 0.25 when all are alike."""
    labels = [str(i % 4) for i in range(2000)]
    parts = partition.dirichlet(np.arange(2000), labels, clients=10, seed=seed, minimum=1, alpha=alpha)
    return float(np.mean([max(Counter(labels[i] for i in p).values()) / len(p) for p in parts]))


def test_a_smaller_alpha_is_more_skewed() -> None:
    tight, middle, wide = (np.mean([_skew(alpha, seed) for seed in range(5)]) for alpha in (0.05, 0.5, 1000.0))
    assert tight > middle + 0.1 > wide + 0.2
    assert wide < 0.3


@pytest.mark.parametrize("alpha", [1e-8, 1e8])
def test_extreme_alphas_stay_finite(alpha: float) -> None:
    parts = partition.dirichlet(np.arange(100), ["x"] * 100, clients=4, seed=0, minimum=5, alpha=alpha)
    _check(parts, np.arange(100), 4, 5)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(DataError, match=r"task\.alpha"):
        partition.dirichlet(np.arange(9), ["x"] * 9, clients=3, seed=0, minimum=1, alpha=alpha)


def test_another_seed_divides_otherwise() -> None:
    one, two = (partition.iid(np.arange(100), clients=5, seed=seed, minimum=1) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_iid_parts_are_of_nearly_equal_size() -> None:
    parts = partition.iid(np.repeat(np.arange(100), 3), clients=7, seed=0, minimum=1)
    assert max(map(len, parts)) - min(map(len, parts)) <= 3


def test_by_label_gives_a_client_few_labels() -> None:
    labels = [str(i % 10) for i in range(1000)]
    parts = partition.by_label(np.arange(1000), labels, clients=10, seed=3, minimum=1)
    assert all(len({labels[i] for i in part}) <= 2 for part in parts)
    assert {len(part) for part in parts} == {100}


@pytest.mark.parametrize(("clients", "minimum"), [(0, 1), (11, 1), (3, 4)])
def test_too_few_examples_are_refused(clients: int, minimum: int) -> None:
    with pytest.raises(DataError, match=r"cannot"):
        partition.iid(np.arange(10), clients=clients, seed=0, minimum=minimum)


def test_a_group_too_large_to_split_is_refused() -> None:
    with pytest.raises(DataError, match="share an image stay together"):
        partition.iid(np.zeros(100, dtype=np.int64), clients=2, seed=0, minimum=1)


def test_groups_are_chains_of_shared_images() -> None:
    images = [["a"], ["b"], ["b", "c"], [], ["c", "d"], ["a"], [], ["e", "e"]]
    assert partition.group_by_image(images).tolist() == [0, 1, 1, 2, 1, 0, 3, 4]


def test_a_late_link_joins_earlier_groups() -> None:
    assert partition.group_by_image([["a"], ["b"], ["c"], ["c", "a"], ["b"]]).tolist() == [0, 1, 0, 0, 1]


def test_natural_gives_each_owner_its_own() -> None:
    parts = partition.natural(["y", "x", "y", "z"], 3, minimum=1)
    assert [part.tolist() for part in parts] == [[1], [0, 2], [3]]


def test_natural_refuses_another_number_of_clients_and_small_owners() -> None:
    with pytest.raises(DataError, match=r"names 2 owners but 3 clients.*federation\.clients to 2"):
        partition.natural(["x", "y"], 3, minimum=1)
    with pytest.raises(DataError, match=r"Owner 'x' has 1 examples, expected at least 2"):
        partition.natural(["x", "y", "y"], 2, minimum=2)
