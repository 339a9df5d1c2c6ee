import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.batches import derive_seed, shuffled_batches, steps_for
from umbel.config import TrainConfig
from umbel.errors import DataError


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 30), st.integers(0, 5))
def test_batches_are_full_deterministic_and_fair(examples, size, steps, seed):
    batches = list(shuffled_batches(examples, size, steps, seed))
    again = list(shuffled_batches(examples, size, steps, seed))
    assert len(batches) == steps
    for a, b in zip(batches, again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert len(a) == min(size, examples)
        assert len(set(a.tolist())) == len(a)


def test_one_pass_sees_every_example_once():
    seen = np.concatenate(list(shuffled_batches(12, 4, 3, 0)))
    assert sorted(seen.tolist()) == list(range(12))


def test_no_examples_are_refused():
    with pytest.raises(DataError):
        next(shuffled_batches(0, 4, 1, 0))


def test_steps_of_epochs_round_up():
    epochs = TrainConfig(unit="epochs", amount=2, **{"batch-size": 16})
    assert steps_for(epochs, 33) == 6
    assert steps_for(TrainConfig(amount=5), 33) == 5
    assert steps_for(TrainConfig(amount=5), 33, amount=7) == 7


def test_seeds_depend_on_every_part():
    seeds = {derive_seed("a", 1, 2), derive_seed("a", 2, 1), derive_seed("b", 1, 2), derive_seed("a", 12, "")}
    assert len(seeds) == 4
    assert all(0 <= s < 2**63 for s in seeds)
