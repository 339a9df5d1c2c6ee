import pytest
import torch
from torch import nn

from mllm.parts import find_parts, linear_sites, part_of, suffixes
from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from umbel.errors import ModelError


@pytest.mark.parametrize(
    ("make", "language", "vision", "projector"),
    [
        (tiny_composed, "language_model", "vision_tower", "projector"),
        (tiny_llava, "model.language_model", "model.vision_tower", "model.multi_modal_projector"),
        (tiny_smolvlm, "model.text_model", "model.vision_model", "model.connector"),
        (tiny_qwen25vl, "model.language_model", "model.visual", "model.visual.merger"),
    ],
)
def test_parts_of_every_family(make, language, vision, projector):
    parts = find_parts(make().model)
    assert parts == {"language": (language,), "vision": (vision,), "projector": (projector,)}
    assert part_of(language + ".layers.0", parts) == "language"
    assert part_of(vision + ".layers.0", parts) == "vision"
    assert part_of(projector, parts) == "projector"
    assert part_of(vision + "x", parts) is None


def test_every_linear_has_a_place_or_a_reason():
    model = tiny_llava().model
    sites = {site.path: site for site in linear_sites(model)}
    assert "lm_head" not in sites  # outside the three parts
    reasons = {site.exempt for site in sites.values()}
    assert reasons == {"", "inside torch.nn.MultiheadAttention", "not on the way of image tokens"}
    composed = {site.path: site.exempt for site in linear_sites(tiny_composed().model)}
    assert composed["language_model.lm_head"] == "output head"
    assert suffixes(s for s in sites.values() if s.part == "projector") == ["linear_1", "linear_2"]


def test_a_model_without_parts_is_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)

    with pytest.raises(ModelError, match="it has body"):
        find_parts(Plain())


def test_gradients_of_exempt_vision_layers_are_really_absent():
    """What is called "not on the way of image tokens" must not be: its gradient has to be missing."""
    tiny = tiny_llava()
    batch = tiny.batch([1, 1])
    tiny.model(**batch.inputs, labels=batch.labels).loss.backward()
    for site in linear_sites(tiny.model):
        gradient = site.module.weight.grad
        if site.part == "vision" and site.exempt:
            assert gradient is None
        else:
            assert torch.count_nonzero(gradient) > 0, site.path
