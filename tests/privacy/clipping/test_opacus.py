"""Opacus where it is right, and its refusal where it is not."""

import pytest
import torch

from privacy.clipping import make_engine
from privacy.clipping.check import relative_error
from tests.privacy.clipping.cells import cell
from umbel.errors import PrivacyError

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["opacus", "opacus-ghost"])
def test_equals_the_loop_in_the_language_model(kind):
    one = cell("llava", "language", "ragged")
    one.model.train()
    norm = 0.05
    engine = make_engine(kind, one.model, one.trainable, norm)
    seen, total = one.run(engine)
    _, second = one.run(engine)  # after the check: no trace of the first step is left
    expected, oracle = one.run(make_engine("loop", one.model, one.trainable, norm))
    torch.testing.assert_close(seen.norms, expected.norms, rtol=1e-4, atol=1e-8)
    assert relative_error(total, oracle) <= 1e-4
    assert relative_error(second, oracle) <= 1e-4


@pytest.mark.parametrize("kind", ["opacus", "opacus-ghost"])
@pytest.mark.parametrize(
    ("name", "part"), [("llava", "vision"), ("smolvlm", "vision"), ("qwen2_5_vl", "vision"), ("llava", "both")]
)
def test_refuses_rows_that_are_not_examples(kind, name, part):
    one = cell(name, part, "several")
    one.model.train()
    engine = make_engine(kind, one.model, one.trainable, 0.05)
    with pytest.raises(PrivacyError, match="book-keeping or loop"):
        one.run(engine)
    assert all(not value.any() for value in engine.take().values())


@pytest.mark.parametrize("layout", ["several", "ragged"])
def test_refuses_a_later_batch_of_another_layout(layout):
    """A single image an example passes the check; later ones must not slip through, even three images in all."""
    one, more = cell("llava", "vision", "one"), cell("llava", "vision", layout)
    one.model.train()
    engine = make_engine("opacus", one.model, one.trainable, 0.05)
    one.run(engine)
    with pytest.raises(PrivacyError, match="rows"):
        engine.accumulate(one.forward, more.batch, more.rows, 3, more.split)


def test_needs_training_mode_and_a_split():
    one = cell("llava", "language", "one")
    one.model.eval()
    engine = make_engine("opacus", one.model, one.trainable, 0.05)
    with pytest.raises(PrivacyError, match="train"):
        one.run(engine)
    one.model.train()
    with pytest.raises(PrivacyError, match="split"):
        engine.accumulate(one.forward, one.batch, one.rows, 3)
