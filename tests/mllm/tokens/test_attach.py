import pytest
import torch

from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image
from mllm.tokens import METHODS, TokenPlan, attach_tokens
from mllm.zoo.store import native_makers
from umbel.errors import ModelError

WORKING = ("llava", "vipllava", "internvl")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        random_image(number).save(folder / f"{number}.png")
    return [ImageSource(folder / f"{number}.png") for number in range(4)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", WORKING)
def test_families_of_one_row_an_image_take_every_method(family, method, images):
    """A batch gives what its examples give, with fewer tokens than before."""
    tiny = native_makers()[family]()
    asked = [
        Example((), "what colour ?", "red"),
        Example((images[0],), "is there a red circle ?", "yes"),
        Example(tuple(images[1:]), "what is the shape ?", "square"),
    ]
    attached = attach_tokens(tiny.model, tiny.processor, TokenPlan(method, 0.5, 1))
    collator = Collator(tiny.processor)
    batch = collator(asked)
    with torch.no_grad():
        whole = tiny.model(**batch.inputs, use_cache=False).logits
        for row, example in enumerate(asked):
            alone = tiny.model(**collator([example]).inputs, use_cache=False).logits[0]
            assert torch.isfinite(alone).all()
            assert torch.allclose(whole[row, : len(alone)], alone, atol=2e-5)
    assert attached.kept == (attached.before if method in ("fastv", "withdraw") else attached.before // 2)


@pytest.mark.parametrize("family", [name for name in native_makers() if name not in WORKING])
def test_other_families_are_refused_with_those_that_work(family):
    tiny = native_makers()[family]()
    with pytest.raises(ModelError, match=rf"use one of umbel_vlm, {', '.join(WORKING)}, or set model\.tokens to none"):
        attach_tokens(tiny.model, tiny.processor, TokenPlan("pool", 0.5))
