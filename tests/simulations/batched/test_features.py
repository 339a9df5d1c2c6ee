"""Image tokens of a frozen tower: computed once an image, the same values, and only where nothing there trains."""

import pytest
import torch

from mllm.testing import tiny_composed, tiny_llava
from simulations.batched.features import KeptFeatures, kept_features
from simulations.batched.fit import lane_sites
from tests.simulations.batched.lanes import setting


@pytest.fixture
def case(pictures):
    return setting(tiny_composed(), pictures)


def pixels_of(case, *indices):
    return case.collator([case.examples[i] for i in indices]).inputs["pixel_values"]


def test_an_image_is_computed_once_whoever_shares_its_batch(case, monkeypatch):
    model, calls = case.tuned.base.model, []
    real = type(model).get_image_features

    def counting(self, pixels):
        calls.append(pixels.shape[0])
        return real(self, pixels)

    monkeypatch.setattr(type(model), "get_image_features", counting)
    kept = KeptFeatures(model)
    first = kept(pixels_of(case, 0, 1))
    again = kept(pixels_of(case, 2, 1, 0))
    assert calls == [1, 1, 1]
    assert torch.equal(again[1:], first.flip(0))
    assert not first.requires_grad
    torch.testing.assert_close(again, real(model, pixels_of(case, 2, 1, 0)), rtol=1e-5, atol=1e-6)


def test_without_room_nothing_is_kept_and_all_is_right(case):
    pixels = pixels_of(case, 0, 1)
    full, none = KeptFeatures(case.tuned.base.model), KeptFeatures(case.tuned.base.model, budget=0)
    assert torch.equal(full(pixels), none(pixels))
    assert torch.equal(full(pixels), none(pixels))
    assert len(full._kept) == 2
    assert len(none._kept) == 0


def test_other_weights_are_other_features(case):
    model = case.tuned.base.model
    pixels, kept = pixels_of(case, 0), KeptFeatures(model)
    kept(pixels)
    model.double()
    assert kept(pixels).dtype == torch.float64


def test_the_model_is_as_before_afterwards(case):
    model = case.tuned.base.model

    def broken_off():
        with kept_features(model, lane_sites(case.tuned)):
            assert isinstance(model.get_image_features, KeptFeatures)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken_off()
    assert "get_image_features" not in vars(model)


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (lambda: tiny_composed("siglip"), "language,vision"),
        (tiny_composed, "language,projector"),
        (tiny_llava, "language"),
    ],
)
def test_what_may_change_is_not_kept(make, targets, pictures):
    case = setting(make(), pictures, targets=targets)
    with kept_features(case.tuned.base.model, lane_sites(case.tuned)):
        assert "get_image_features" not in vars(case.tuned.base.model)
