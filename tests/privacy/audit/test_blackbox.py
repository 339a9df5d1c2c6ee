"""Whole-example and whole-client canaries, on a model that memorises and on one that cannot."""

import numpy as np
import pytest
import torch

from mllm.loss import per_example_loss
from privacy.audit import ClientCanaries, ExampleCanaries, GaussianTradeOff, judge, loss_scores, train_and_score
from privacy.noise import FixedNoise, normal
from tests.privacy.clipping.cells import adapt, base
from umbel.errors import PrivacyError

torch.set_num_threads(1)


def _inputs(canaries, which, image_token):
    """16 image tokens, then the target: a LLaVA batch of canaries."""
    targets = canaries.targets[which]
    prompt = torch.full((len(which), 16), image_token)
    ids = torch.cat([prompt, targets], dim=1)
    labels = ids.masked_fill(ids == image_token, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": canaries.images[which]}
    return inputs, labels


def test_memorised_canaries_break_a_claim():
    """Without noise a model learns its canaries by heart: a claim of mu = 0.3 cannot stand."""
    source = FixedNoise(4, for_tests=True)
    model, trainable = adapt(base("llava").model, target_modules=r".*language_model.*(_proj)", r=16, lora_alpha=32)
    token = model.config.image_token_id
    canaries = ExampleCanaries.draw(24, 32, 6, np.setdiff1d(np.arange(5, 25), [token]), source)

    def losses(some):
        inputs, labels = _inputs(some, list(range(24)), token)
        return per_example_loss(model(**inputs).logits, labels)

    def train(members):
        inputs, labels = _inputs(canaries, members.tolist(), token)
        optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            per_example_loss(model(**inputs).logits, labels).mean().backward()
            optimizer.step()

    scores = train_and_score(canaries, losses, train)
    report = judge(scores, canaries.members, 20, GaussianTradeOff(0.3), GaussianTradeOff, delta=1e-5)
    assert report.correct >= 18
    assert report.rejected
    assert report.epsilon > report.claimed


def test_a_model_that_never_trains_shows_nothing():
    source = FixedNoise(5, for_tests=True)
    canaries = ExampleCanaries.draw(40, 4, 3, np.arange(5), source)
    scores = train_and_score(canaries, lambda c: c.images.mean(dim=(1, 2, 3)), lambda members: None)
    assert not scores.any()
    report = judge(scores, canaries.members, 10, GaussianTradeOff(0.5), GaussianTradeOff, delta=1e-5)
    assert not report.rejected


def test_what_is_drawn():
    canaries = ExampleCanaries.draw(30, 5, 7, np.array([4, 9, 11]), FixedNoise(6, for_tests=True))
    assert canaries.images.shape == (30, 3, 5, 5)
    assert canaries.images.dtype == torch.float32
    assert set(canaries.targets.unique().tolist()) == {4, 9, 11}
    assert 0 < canaries.members.sum() < 30
    assert canaries.images[0].ne(canaries.images[1]).all()
    for bad in [(0, 5, 7, [1]), (3, 5, 0, [1]), (3, 5, 7, [])]:
        with pytest.raises(PrivacyError, match="cannot be drawn"):
            ExampleCanaries.draw(*bad[:3], np.array(bad[3], dtype=np.int64))


def test_scores_of_losses():
    before, after = torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([0.5, 3.0, 1.0])
    scores = loss_scores(before, after)
    assert scores[:2].tolist() == [0.5, -1.0]
    assert np.isnan(scores[2])
    with pytest.raises(PrivacyError, match="differ"):
        loss_scores(before, after[:2])


@pytest.mark.parametrize(("noise", "caught"), [(1.0, False), (0.3, True)])
def test_canary_clients(noise, caught):
    """Clip each update to C = 1, sum, add Gaussian noise of ``noise``: claimed is noise 1."""
    source = FixedNoise(7, for_tests=True)
    canaries = ClientCanaries.draw(600, 2000, loudness=50.0, source=source)
    total = np.zeros(2000)
    for canary in np.flatnonzero(canaries.members):
        update = canaries.update(int(canary)).astype(np.float64)
        total += update * min(1.0, 1.0 / np.linalg.norm(update))
    released = (total + noise * normal(2000, source)).astype(np.float32)
    report = judge(
        canaries.scores(released), canaries.members, 150, GaussianTradeOff(1.0), GaussianTradeOff, delta=1e-5
    )
    assert report.rejected is caught
    with pytest.raises(PrivacyError, match="do not fit"):
        ClientCanaries.draw(11, 10, 1.0)
