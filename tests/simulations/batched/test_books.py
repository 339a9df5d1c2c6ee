"""Per-example clipping in lanes: the bound, lane by lane."""

import numpy as np
import pytest
import torch

from privacy.clipping.claims import claim
from simulations.batched import LaneJob
from simulations.batched.books import clipped_sums
from simulations.batched.fit import lane_sites
from simulations.batched.group import LaneGroup
from simulations.batched.lane import Lane
from strategies.fedit import FedIT
from tests.simulations.batched.lanes import private, setting, train_config


class Fixed:
    """A sampler that takes everything, once."""

    def __init__(self, n):
        self.n, self.expected = n, 1.0

    def draw(self):
        return np.arange(self.n)

    def batches(self, steps):
        return (self.draw() for _ in range(steps))


def sums_of(case, sets, norm, seen):
    """What is released without noise in one step of one group: the clipped sum of each lane."""
    lanes = []
    for number, indices in enumerate(sets):
        steps = private(max(len(indices), 1), 1, number, norm=norm)
        steps._sampler = Fixed(len(indices))
        steps._add_noise = seen.append
        client = FedIT().begin(case.tuned.spec, case.initial, 1)
        lanes.append(Lane(LaneJob(case.examples.subset(indices), client, number, 1, steps), train_config()))
    group = LaneGroup(case.tuned, case.collator, train_config(), lanes, lane_sites(case.tuned), 256)
    group.run()
    return [vector.copy() for vector in seen]


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen"])
def test_one_example_moves_its_own_sum_by_at_most_c_and_no_other(family, pictures):
    from mllm import testing

    make = {"llava": testing.tiny_llava, "smolvlm": testing.tiny_smolvlm, "qwen": testing.tiny_qwen25vl}[family]
    case = setting(make(), pictures, targets="language,vision")
    norm = 1e-3
    with_it = sums_of(case, [[0, 1, 2], [3, 4], [5]], norm, [])
    without = sums_of(case, [[0, 1], [3, 4], [5]], norm, [])
    moved = np.linalg.norm(with_it[0].astype(np.float64) - without[0])
    assert 0.9 * norm < moved <= norm * (1 + 1e-6)  # every gradient is larger than C, so the bound is met
    for a, b in zip(with_it[1:], without[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * norm, rtol=1e-5)
    alone = sums_of(case, [[5], [5]], norm, [])
    assert np.linalg.norm(alone[0]) <= norm * (1 + 1e-6)


def test_sums_are_those_of_each_lane():
    rng = torch.Generator().manual_seed(0)
    books = torch.randn(7, 5, generator=rng)
    expected = books * torch.clamp(1.0 / books.norm(dim=1), max=1).unsqueeze(1)
    into = torch.zeros(4, 5)
    clipped_sums(books, [2, 0, 2, 3], 1.0, into)
    for lane, part in enumerate((slice(0, 2), slice(0, 0), slice(2, 4), slice(4, 7))):
        torch.testing.assert_close(into[lane], expected[part].sum(dim=0), atol=1e-5, rtol=1e-5)


def test_an_example_that_is_not_finite_contributes_nothing():
    books = torch.ones(4, 3)
    books[1, 0], books[2, 2] = float("nan"), float("inf")
    into = torch.zeros(2, 3)
    clipped_sums(books, [2, 2], 10.0, into)
    torch.testing.assert_close(into, torch.ones(2, 3))


def test_the_bound_holds_for_every_norm():
    for scale in (1e-20, 1e-3, 1.0, 1e3, 1e18):
        books, into = torch.randn(50, 200) * scale, torch.zeros(50, 200)
        clipped_sums(books, [1] * 50, 1.0, into)
        assert float(into.double().norm(dim=1).max()) <= 1 + 1e-6


def test_a_parameter_that_no_engine_knows_is_refused(case, monkeypatch):
    from simulations.batched import group
    from umbel.errors import UnclaimedParameter

    case.tuned.base.model.projector.requires_grad_(True)
    with pytest.raises(UnclaimedParameter, match="requires a gradient"):
        sums_of(case, [[0], [1]], 1.0, [])
    case.tuned.base.model.projector.requires_grad_(False)
    assert group.claim is claim
    assert len(sums_of(case, [[0], [1]], 1.0, [])) == 2
