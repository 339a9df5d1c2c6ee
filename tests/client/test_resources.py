"""Which rank a site trains at, and which of its examples it holds out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.held_out import hold_out
from client.resources import client_rank
from mllm.tasks.base import MemorySet
from mllm.tasks.example import Example, ImageSource
from umbel.config import RunConfig
from umbel.errors import ConfigError, SiteError


def config(**changes):
    flat = {"lora.rank": 8, "strategy.ranks": "mixed", "strategy.client-ranks": "2,4,8"}
    return RunConfig.from_flat(flat | {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()})


def test_ranks_are_dealt_in_turn_and_a_nodes_own_goes_first():
    assert [client_rank(config(), index) for index in range(5)] == [2, 4, 8, 2, 4]
    assert client_rank(config(), 0, 5) == 5
    assert client_rank(config(strategy__client_ranks="top"), 3) == 8
    same = config(strategy__ranks="same", strategy__client_ranks="top")
    assert client_rank(same, 1) == client_rank(same, 1, 8) == 8


@pytest.mark.parametrize("own", [0, -1, 9])
def test_a_rank_outside_the_servers_is_refused(own):
    with pytest.raises(SiteError, match="outside 1 to lora"):
        client_rank(config(), 0, own)


def test_a_lower_rank_needs_mixed_ranks():
    with pytest.raises(SiteError, match=r"strategy\.ranks to mixed"):
        client_rank(config(strategy__ranks="same", strategy__client_ranks="top"), 0, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy__ranks": "same"}, "strategy.ranks is same"),
        ({"strategy__client_ranks": "2,16"}, "above lora.rank 8"),
        ({"strategy__client_ranks": "2;4"}, "client-ranks"),
        ({"strategy__client_ranks": "0,4"}, "client-ranks"),
        ({"evaluate__held_out": 1.0}, "held-out"),
        ({"evaluate__held_out": 0.0}, "held-out"),
    ],
)
def test_impossible_options_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


def examples(images):
    return MemorySet(
        Example(
            images=() if name is None else (ImageSource(Path(f"{name}.png"), origin="test"),),
            question=f"q{number} ?",
            answer="a",
            meta={},
        )
        for number, name in enumerate(images)
    )


@given(
    images=st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=2, max_size=30),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_the_split_is_whole_disjoint_by_image_and_repeatable(images, share, seed):
    everything = examples(images)
    train, held = hold_out(everything, share, seed)
    asked = [e.question for e in train], [e.question for e in held]
    assert sorted(asked[0] + asked[1]) == sorted(e.question for e in everything)
    assert not set(asked[0]) & set(asked[1])
    shown = [{e.images[0].path for e in part if e.images} for part in (train, held)]
    assert not shown[0] & shown[1]
    again = hold_out(everything, share, seed)
    assert [[e.question for e in part] for part in again] == list(asked)
    groups = len({name for name in images if name is not None}) + images.count(None)
    assert len(train) > 0
    assert (len(held) > 0) == (groups > 1)
    largest = max(np.unique([n for n in images if n is not None], return_counts=True)[1], default=1)
    assert len(held) < share * len(images) + largest or groups == 1


def test_one_image_and_no_examples_hold_nothing_out():
    assert [len(part) for part in hold_out(examples([1, 1, 1]), 0.5, 0)] == [3, 0]
    assert [len(part) for part in hold_out(examples([]), 0.5, 0)] == [0, 0]
