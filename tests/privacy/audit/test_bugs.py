"""Planted bugs: four times the clipping norm, half the noise, a batch-mean loss, rows for examples."""

import pytest
import torch

from privacy.audit import (
    CurveTradeOff,
    GradientCanaries,
    canary_scores,
    coins,
    dp_sgd_trade_off,
    gaussian_release,
    judge,
    sensitivity_check,
)
from privacy.clipping import make_engine
from privacy.clipping.bookkeeping import BookkeepingEngine
from privacy.noise import FixedNoise
from tests.privacy.clipping.cells import cell
from umbel.errors import AuditFailure, PrivacyError
from umbel.rows import RowMap, RowRule, Rows, batch_rule

torch.set_num_threads(1)
C, SIGMA, STEPS = 1.0, 2.0, 4


def check(one, engine, forward=None, rows=None, without=True):
    return sensitivity_check(
        engine,
        forward or one.forward,
        one.batch,
        rows or one.rows_of,
        one.split,
        C,
        size=one.size,
        without=one.without if without else None,
    )


@pytest.mark.parametrize("kind", ["bookkeeping", "loop"])
@pytest.mark.parametrize("name", ["llava", "smolvlm", "qwen2_5_vl"])
def test_sound_engines_pass(name, kind):
    one = cell(name, "both", "ragged")
    report = check(one, make_engine(kind, one.model, one.trainable, C))
    assert report.holds
    assert report.ratio == pytest.approx(1.0, abs=1e-5)  # every example was clipped, so the bound is met exactly
    report.require()


def test_four_times_the_clipping_norm_is_caught():
    one = cell("llava", "both", "ragged")
    report = check(one, make_engine("bookkeeping", one.model, one.trainable, 4 * C))
    assert report.ratio == pytest.approx(4.0, rel=1e-3)
    with pytest.raises(AuditFailure, match=r"by (4|4\.0000\d*|3\.9999\d*) C"):
        report.require()


@pytest.mark.parametrize("without", [True, False])
def test_a_batch_mean_loss_is_caught(without):
    """The mean over the batch's tokens, handed out as if it were one loss an example."""
    one = cell("llava", "language", (1, 1, 1, 1, 1, 1))

    def coupled(batch):
        tokens = (batch[1][:, 1:] != -100).sum(dim=1)
        return one.forward(batch) * tokens / tokens.sum()

    with torch.no_grad():
        whole = one.forward(one.batch)
        tokens = (one.batch[1][:, 1:] != -100).sum(dim=1)
        mean = float((whole * tokens).sum() / tokens.sum())
        assert float(coupled(one.batch).sum()) == pytest.approx(mean, rel=1e-5)
    report = check(one, make_engine("bookkeeping", one.model, one.trainable, C), coupled, without=without)
    assert check(one, make_engine("bookkeeping", one.model, one.trainable, C)).holds
    assert report.ratio > 1.01
    with pytest.raises(AuditFailure):
        report.require()


def test_images_taken_for_examples_are_caught():
    """Row-wise clipping, as an engine does that takes the first dimension for the batch."""
    one = cell("llava", "vision", "several")

    class Rowwise(BookkeepingEngine):
        def _accumulate(self, forward, batch, rows, size, split):
            images = batch[0]["pixel_values"].shape[0]
            wrong = RowMap(images, (RowRule("vision_tower", (Rows.repeated([1] * images),)), batch_rule(images)))
            repeated = lambda b: forward(b).repeat_interleave(images // size) / (images // size)  # noqa: E731
            norms, losses = super()._accumulate(repeated, batch, wrong, images, split)
            return norms[:size], losses[:size]

    report = check(one, Rowwise(one.model, one.trainable, C))
    assert report.ratio > 1.2
    assert not report.holds


def _audit(seed, *, clip=1.0, noise=1.0, kind="bookkeeping", rate=1.0, count=800, real=False):
    source = FixedNoise(seed, for_tests=True)
    one = cell("llava", "language", "one", r=8)
    engine = make_engine(kind, one.model, one.trainable, clip * C)
    canaries = GradientCanaries.on(engine, count, C, source)
    members = coins(count, source)
    scores = canary_scores(
        engine,
        canaries,
        members,
        gaussian_release(noise * SIGMA, C, source),
        clipping_norm=C,
        noise_multiplier=SIGMA,
        sampling_rate=rate,
        steps=STEPS,
        real=[lambda: engine.accumulate(one.forward, one.batch, one.rows, 3, one.split)] if real else (),
        source=source,
    )
    return judge(
        scores,
        members,
        count // 4,
        dp_sgd_trade_off(SIGMA, rate, STEPS),
        lambda strength: dp_sgd_trade_off(SIGMA / strength, rate, STEPS),
        delta=1e-5,
        bounds=(0.1, 8.0),
    )


@pytest.mark.parametrize("kind", ["bookkeeping", "loop"])
def test_a_sound_run_stays_below_its_claim(kind):
    report = _audit(11, kind=kind, real=True, count=400 if kind == "loop" else 800)
    assert not report.rejected
    assert 0.3 < report.epsilon < report.claimed  # not vacuous either
    report.require()


@pytest.mark.parametrize(("clip", "noise"), [(4.0, 1.0), (1.0, 0.5)])
def test_planted_bugs_are_caught_by_canaries(clip, noise):
    report = _audit(12, clip=clip, noise=noise)
    assert report.rejected
    assert report.epsilon > report.claimed
    with pytest.raises(AuditFailure):
        report.require()


def test_a_sampled_run_stays_below_its_claim():
    report = _audit(13, rate=0.5, count=400)
    assert report.epsilon < report.claimed
    assert not report.rejected


def test_a_bare_claim_below_what_is_shown_fails():
    scores = torch.randn(800, generator=torch.Generator().manual_seed(1)).double().numpy()
    members = coins(800, FixedNoise(1, for_tests=True))
    report = judge(
        scores + 2 * members,
        members,
        200,
        CurveTradeOff((1.0,), (1e-5,)),
        lambda strength: dp_sgd_trade_off(1 / strength, 1.0, 1),
        delta=1e-5,
        bounds=(0.1, 8.0),
    )
    assert report.rejected
    assert report.claimed == 1.0


def test_canaries_are_distinct_and_fit():
    one = cell("llava", "language", "one")
    engine = make_engine("bookkeeping", one.model, one.trainable, C)
    canaries = GradientCanaries.on(engine, 200, C)
    assert len({(a, b, c) for a, b, c in zip(canaries.layer, canaries.row, canaries.column, strict=True)}) == 200
    everyone = canaries.layer >= 0
    canaries.accumulate(engine, everyone)
    released = engine.take()
    assert canaries.read(released) == pytest.approx([C] * 200, rel=1e-6)
    assert sum(float(v.abs().sum()) for v in released.values()) == pytest.approx(200 * C, rel=1e-5)
    with pytest.raises(PrivacyError, match="do not fit"):
        GradientCanaries.on(engine, 10**9, C)


def test_an_empty_batch_is_refused():
    one = cell("llava", "language", "one")
    engine = make_engine("loop", one.model, one.trainable, C)
    with pytest.raises(PrivacyError, match="empty batch"):
        sensitivity_check(engine, one.forward, one.batch, one.rows_of, one.split, C, size=0)
