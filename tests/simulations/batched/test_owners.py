import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simulations.batched.owners import LaneRows, Owners, UnmappedRows
from umbel.rows import RowMap, RowRule, Rows


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_pieces_cover_every_row_once_and_in_order(counts):
    owners, seen, row = Owners(tuple(counts)), [], 0
    for first, last, start, stop in owners.pieces:
        assert start == row
        assert (stop - start) % (last - first) == 0
        each = (stop - start) // (last - first)
        assert all(counts[owner] == each > 0 for owner in range(first, last))
        seen += [owner for owner in range(first, last) for _ in range(each)]
        row = stop
    assert seen == [owner for owner, count in enumerate(counts) for _ in range(count)]
    assert owners.whole == (len(set(counts)) == 1 and counts[0] > 0)


def test_equal_neighbours_are_one_piece():
    assert Owners((4, 4, 4)).pieces == ((0, 3, 0, 12),)
    assert Owners((4, 0, 4)).pieces == ((0, 1, 0, 4), (2, 3, 4, 8))
    assert Owners((0, 0)).pieces == ()


def test_rows_of_lanes_are_sums_over_their_examples():
    images = Rows.repeated([2, 0, 1, 3])
    rows = RowMap(4, (RowRule("vision", (images,)), *RowMap.batch(4, 5).rules))
    found = LaneRows(rows, [2, 1, 1])
    lanes, examples, text = found.of("model.vision.layer", (6, 7, 8))
    assert (lanes.counts, examples.counts, text) == ((2, 1, 3), (2, 0, 1, 3), False)
    lanes, examples, text = found.of("model.language.layer", (4, 5, 8))
    assert (lanes.counts, examples.counts, text) == ((2, 1, 1), (1, 1, 1, 1), True)
    assert found.of("model.language.layer", (20, 8))[0].counts == (10, 5, 5)


def test_rows_without_an_owner_and_mixed_rows_are_refused():
    with pytest.raises(UnmappedRows, match="row map knows"):
        LaneRows(RowMap.batch(4), [2, 2]).of("layer", (3, 8))
    mixed = Rows(torch.tensor([0, 1, 0, 1]), 2)
    with pytest.raises(UnmappedRows, match="mixed"):
        LaneRows(RowMap(2, (RowRule("", (mixed,)),)), [1, 1]).of("layer", (4, 8))
