import pytest
import torch

from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from umbel.errors import ModelError


@pytest.mark.parametrize("make", [tiny_composed, tiny_llava, tiny_smolvlm, tiny_qwen25vl])
def test_the_same_seed_gives_the_same_model_and_batch(make):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two, other = make(), make(), make(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    a, b, c = one.batch([1, 2, 0]), two.batch([1, 2, 0]), one.batch([1, 2, 0], seed=1)
    assert all(torch.equal(a.inputs[k], b.inputs[k]) for k in a.inputs)
    assert not torch.equal(a.inputs["pixel_values"], c.inputs["pixel_values"])
    assert a.images_per_example == [1, 2, 0]
    assert ((a.labels != -100).sum(1) > 0).all()
    assert (a.labels[a.inputs["attention_mask"] == 0] == -100).all()


def test_an_unknown_part():
    with pytest.raises(ModelError, match="choose one of resnet"):
        tiny_composed("owl")
    with pytest.raises(ModelError, match="choose one of llama"):
        tiny_composed(language="gpt")
