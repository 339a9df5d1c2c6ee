import pytest
import torch
import transformers

from mllm.hub_processor import load_processor, without_video
from mllm.testing import random_image, tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from umbel.errors import ModelError


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (tiny_composed, "ComposedProcessor"),
        (tiny_llava, "LlavaProcessor"),
        (tiny_smolvlm, "SmolVLMProcessor"),
        (lambda: tiny_smolvlm(tiles=True), "SmolVLMProcessor"),
        (tiny_qwen25vl, "Qwen2_5_VLProcessor"),
    ],
)
def test_loads_without_torchvision_and_gives_the_same_batches(make, kind, tmp_path):
    tiny = make()
    tiny.save(tmp_path)
    loaded = load_processor(tmp_path)
    assert type(loaded).__name__ == kind
    mark = "<|image_pad|>" if "Qwen" in kind else "<image>"
    images = [random_image(0, 40, 24)]
    options = {"text": [f"{mark} red ?"], "images": [images], "return_tensors": "pt"}
    one, two = tiny.processor(**options), loaded(**options)
    assert one.keys() == two.keys()
    assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)
    logits = tiny.model(**two).logits
    assert logits.shape[:2] == two["input_ids"].shape


def test_the_class_keeps_its_name_and_options():
    kind = without_video(transformers.SmolVLMProcessor)
    assert kind is without_video(transformers.SmolVLMProcessor)
    assert issubclass(kind, transformers.SmolVLMProcessor)
    assert kind.__name__ == "SmolVLMProcessor"
    assert tiny_smolvlm().processor.image_seq_len == 4


def test_nothing_to_load(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_processor(tmp_path)
    tiny_llava().model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="expected tokenizer and image processor files"):
        load_processor(tmp_path)
