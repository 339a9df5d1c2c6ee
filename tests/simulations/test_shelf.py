"""What devices remember, in memory and beyond it."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from simulations.shelf import Shelf


@given(st.lists(st.tuples(st.integers(1, 5), st.binary(max_size=40)), max_size=40), st.integers(0, 90))
def test_the_last_state_is_remembered_whatever_fits_in_memory(puts, budget):
    shelf, expected = Shelf(budget), {}
    for node, state in puts:
        shelf.put(node, state)
        expected[node] = state
        assert shelf._size == sum(map(len, shelf._held.values())) <= budget
    assert all(shelf.get(node) == expected.get(node, b"") for node in range(1, 6))
    shelf.close()
    assert all(shelf.get(node) == b"" for node in range(1, 6))


def test_closing_removes_the_files():
    shelf = Shelf(budget=3)
    shelf.put(1, b"longer than three")
    folder = Path(shelf._folder.name)
    assert (folder / "1.state").is_file()
    shelf.close()
    shelf.close()
    assert not folder.exists()
