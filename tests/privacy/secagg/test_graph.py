import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.graph import Graph, permutation


@given(n=st.integers(5, 60), half=st.integers(1, 10), seed=st.binary(max_size=8))
def test_regular_symmetric_and_connected(n, half, seed):
    k = 2 * half
    members = [3 * i for i in range(n)]
    graph = Graph(members, k, seed)
    near = {v: set(graph.neighbours(v)) for v in members}
    assert all(v not in near[v] and near[v] <= set(members) for v in members)
    assert all((u in near[v]) == (v in near[u]) for u in members for v in members)
    assert {len(near[v]) for v in members} == {min(k, n - 1)}
    reached, todo = set(), [members[0]]
    while todo:
        v = todo.pop()
        if v not in reached:
            reached.add(v)
            todo += near[v]
    assert reached == set(members)
    assert set(graph.holders(members[0])) == (set(members) if graph.complete else near[members[0]])


def test_the_seed_decides():
    assert permutation(b"a", 50) == permutation(b"a", 50) != permutation(b"b", 50)
    assert sorted(permutation(b"a", 50)) == list(range(50))


def test_places_are_uniform():
    # Where element 0 lands over many seeds: chi-square with 9 degrees of freedom, p = 1e-6 at 45.
    counts = [0] * 10
    for i in range(4000):
        counts[permutation(i.to_bytes(4, "big"), 10).index(0)] += 1
    assert sum((c - 400) ** 2 / 400 for c in counts) < 45


def test_a_stranger_has_no_neighbours():
    with pytest.raises(KeyError):
        Graph(range(20), 4, b"").neighbours(99)
