"""Book-keeping equals the loop, and no example moves the sum by more than C, over every family, part and layout."""

import pytest
import torch

from mllm.testing_families import FURTHER, MAKERS
from privacy.clipping import make_engine
from privacy.clipping.check import relative_error
from tests.privacy.clipping.cells import LAYOUTS, PARTS, cell

torch.set_num_threads(1)


def _difference(whole, rest):
    return sum(float((whole[k].double() - rest[k].double()).square().sum()) for k in whole) ** 0.5


CELLS = [(name, part, layout) for name in MAKERS for part in PARTS for layout in LAYOUTS]
# Gemma 3 projects by a bare parameter, which takes no LoRA factors.
CELLS += [(name, part, "ragged") for name in FURTHER for part in PARTS if (name, part) != ("gemma3", "projector")]


@pytest.mark.parametrize(("name", "part", "layout"), CELLS)
def test_equals_the_loop_and_bounds_every_example(name, part, layout):
    one = cell(name, part, layout)
    assert len(one.trainable) >= 2
    unclipped, _ = one.run(make_engine("loop", one.model, one.trainable, 1.0))
    positive = unclipped.norms[unclipped.norms > 0]
    norm = 0.5 * float(positive.min()) if len(positive) else 0.1  # everything is clipped: the strictest case
    books, loop = (make_engine(kind, one.model, one.trainable, norm) for kind in ("bookkeeping", "loop"))
    seen, total = one.run(books)
    expected, oracle = one.run(loop)
    torch.testing.assert_close(seen.norms, expected.norms, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(seen.losses, expected.losses, rtol=1e-4, atol=1e-6)
    assert seen.clipped_fraction == expected.clipped_fraction
    assert relative_error(total, oracle) <= 1e-5
    if layout != "none" or part in ("language", "both"):
        assert seen.clipped_fraction == pytest.approx(len(positive) / one.size)
        assert len(positive) >= (1 if layout == "none" else 2)
    elif part in ("vision", "projector"):
        assert all(not value.any() for value in total.values())
    # Remove one example, in a batch that keeps the padding of the whole.
    for gone in range(one.size):
        kept = [i for i in range(one.size) if i != gone]
        rest = one.without(one.batch, gone)
        engine = make_engine("bookkeeping", one.model, one.trainable, norm)
        engine.accumulate(one.forward, rest, one.rows_of(rest), len(kept))
        assert _difference(total, engine.take()) <= norm * (1 + 1e-6)


def test_a_wrong_owner_is_seen():
    """The comparison above can fail: shifting the images by one example is not within 1e-2."""
    from umbel.rows import RowMap, RowRule, Rows, batch_rule

    one = cell("llava", "vision", "ragged")
    wrong = RowMap(3, (RowRule("vision_tower", (Rows.repeated([1, 1, 1]),)), batch_rule(3)))
    books = make_engine("bookkeeping", one.model, one.trainable, 0.1)
    books.accumulate(one.forward, one.batch, wrong, 3)
    _, oracle = one.run(make_engine("loop", one.model, one.trainable, 0.1))
    assert relative_error(books.take(), oracle) > 1e-2
