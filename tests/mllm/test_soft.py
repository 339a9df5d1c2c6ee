"""Soft tokens before every native family: they train, or are refused before anything does."""

import pytest
import torch

from client.losses import example_losses
from mllm.inference import Answerer
from mllm.load import load_base
from mllm.soft import SoftTokens
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image
from mllm.tune import attach
from mllm.zoo import NATIVE
from mllm.zoo.store import native_makers
from umbel.config.model import LoraConfig
from umbel.errors import ModelError

REFUSED = {
    "gemma3": "The family gemma3 gives its language model finished attention masks",
    "paligemma": "The family paligemma gives its language model finished attention masks",
    "qwen2_vl": "Qwen2VLForConditionalGeneration has positions of several dimensions",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration has positions of several dimensions",
    "qwen3_vl": "Qwen3VLForConditionalGeneration has positions of several dimensions",
}


@pytest.fixture(scope="module", params=NATIVE)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    native_makers()[request.param]().save(folder)
    random_image(0).save(folder / "0.png")
    example = Example((ImageSource(folder / "0.png"),), "what colour is the circle ?", "red")
    return request.param, load_base(str(folder), "none"), example


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_step_is_taken_or_refused_when_it_is_attached(family, method):
    name, base, example = family
    config = LoraConfig(method=method, tokens=3)
    if name in REFUSED:
        with pytest.raises(ModelError, match=f"{REFUSED[name]}.*set lora.method to lora, or leave out --tuning-steps"):
            attach(base, config, seed=0)
        assert not hasattr(base.model, "soft_tokens")
        return
    tuned, batch = attach(base, config, seed=0), Collator(base.processor)([example])
    try:
        optimizer = torch.optim.SGD(tuned.parameters.values(), lr=0.01)
        before = example_losses(tuned.model, batch).sum()
        before.backward()
        for parameter in tuned.parameters.values():
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().sum() > 0
        optimizer.step()
        with torch.no_grad():
            assert example_losses(tuned.model, batch).sum() < before
    finally:
        tuned.detach()


def test_an_answer_is_tuned_to_its_example_or_refused(family):
    name, base, example = family
    answerer = Answerer(base.model, Collator(base.processor), most_tokens=2, augment=2, tuning_steps=1)
    if name in REFUSED:
        with pytest.raises(ModelError, match=f"{REFUSED[name]}.*or leave out --tuning-steps"):
            answerer.answer([example])
    elif name == "blip_2":  # its language model alone writes the answer, and is given tokens after the first
        with pytest.raises(ModelError, match="Soft tokens need inputs_embeds"):
            answerer.answer([example])
    else:
        assert 0 < answerer.answer([example])[0].probability <= 1


@pytest.mark.parametrize("mask", [{"full_attention": None}, torch.ones(1, 1, 4, 4, dtype=torch.bool)])
def test_finished_masks_are_refused_where_they_arrive(mask):
    """By a family that does not say beforehand that it makes them."""

    class Text:
        hidden_size = 8

    soft = SoftTokens("prompt", 2, Text())
    with pytest.raises(ModelError, match="finished attention masks"):
        soft.enter(soft, (), {"inputs_embeds": torch.zeros(1, 4, 8), "attention_mask": mask})
