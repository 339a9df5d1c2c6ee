import itertools
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mllm.modeling import ComposedForConditionalGeneration
from mllm.processing import ComposedProcessor
from mllm.testing import random_image, tiny_composed
from umbel.errors import ModelError

# Every part by itself is the business of test_contract.py; here all pairs of four that differ most.
COMBINATIONS = list(itertools.product(("resnet", "clip"), ("mlp", "pixel-shuffle"), ("llama", "qwen2")))


@pytest.mark.parametrize(("encoder", "projector", "language"), COMBINATIONS)
def test_every_combination_saves_and_loads_unchanged(encoder, projector, language, tmp_path):
    tiny = tiny_composed(encoder, projector, language, layers=1)
    batch = tiny.batch([1, 0, 2])
    expected = tiny.model(**batch.inputs).logits
    assert expected.shape[:2] == batch.labels.shape
    tiny.save(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is ComposedForConditionalGeneration
    assert all(torch.equal(a, b) for a, b in zip(tiny.model.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(loaded(**batch.inputs).logits, expected)


@pytest.mark.parametrize(("encoder", "projector", "language"), COMBINATIONS)
def test_every_parameter_learns(encoder, projector, language):
    tiny = tiny_composed(encoder, projector, language, layers=1)
    batch = tiny.batch([1, 2])
    tiny.model(**batch.inputs, labels=batch.labels).loss.backward()
    still = [name for name, p in tiny.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The key bias cancels in softmax (SigLIP, CLIP, ViT), CLIP normalises what it does not return, and the CLS
    # token's own way ends with the last layer.
    assert all("k_proj.bias" in n or "key.bias" in n or "post_layernorm" in n for n in still), still


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("encoder", ["resnet", "siglip"])
def test_a_batch_equals_its_examples_one_by_one(side, encoder):
    tiny = tiny_composed(encoder)
    processor, model = tiny.processor, tiny.model
    texts = ["<image> what colour is the shape ?", "yes", "a <image> in <image> red ? no no no"]
    images = [[random_image(0)], [], [random_image(1), random_image(2)]]
    inputs = processor(texts, images, padding_side=side)
    with torch.no_grad():
        together = model(**inputs).logits
        for index, (text, group) in enumerate(zip(texts, images, strict=True)):
            single = model(**processor([text], [group])).logits[0]
            mine = together[index][inputs["attention_mask"][index] == 1]
            assert torch.allclose(mine, single, atol=2e-6)


def test_images_matter_and_keep_their_order():
    tiny = tiny_composed()
    first, second = random_image(0), random_image(1)
    with torch.no_grad():
        one = tiny.model(**tiny.processor(["<image> <image> red"], [[first, second]])).logits
        other = tiny.model(**tiny.processor(["<image> <image> red"], [[second, first]])).logits
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize(("encoder", "language"), [("resnet", "llama"), ("vit", "qwen2")])
@pytest.mark.parametrize("counts", [[1, 0, 2], [0, 0]])
def test_generation_with_a_cache_equals_without(encoder, language, counts):
    tiny = tiny_composed(encoder, language=language)
    inputs = tiny.batch(counts, padding_side="left").inputs
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = tiny.model.generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, tiny.model.generate(**inputs, **options, use_cache=False))
    assert cached.shape[1] == inputs["input_ids"].shape[1] + 6
    # Every example generates what it generates alone.
    row = inputs["attention_mask"][0] == 1
    alone = {"input_ids": inputs["input_ids"][:1, row], "attention_mask": inputs["attention_mask"][:1, row]}
    if counts[0]:
        alone["pixel_values"] = inputs["pixel_values"][: counts[0]]
    assert torch.equal(tiny.model.generate(**alone, **options)[0, -6:], cached[0, -6:])


def test_beams_keep_an_examples_images_together():
    tiny = tiny_composed()
    inputs = tiny.batch([2, 1], padding_side="left").inputs
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    beams = tiny.model.generate(**inputs, **options, num_beams=3)
    row = inputs["attention_mask"][1] == 1
    alone = {k: inputs[k][1:, row] for k in ("input_ids", "attention_mask")}
    alone["pixel_values"] = inputs["pixel_values"][2:]
    assert torch.equal(tiny.model.generate(**alone, **options, num_beams=3)[0, -4:], beams[1, -4:])


def test_a_placeholder_is_never_generated():
    tiny = tiny_composed()
    with torch.no_grad():
        tiny.model.language_model.lm_head.weight[tiny.model.config.image_token_id] *= 1e3
        out = tiny.model.generate(**tiny.batch([1, 1], padding_side="left").inputs, max_new_tokens=8, do_sample=True)
    new = out[:, -8:]
    assert not (new == tiny.model.config.image_token_id).any()


def test_tied_weights_stay_tied(tmp_path):
    tiny = tiny_composed(tie=True)
    tiny.save(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert AutoConfig.from_pretrained(tmp_path).tie_word_embeddings


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        tiny = tiny_composed("siglip")
        tiny.model.train()
        if checkpointing:
            tiny.model.gradient_checkpointing_enable()
            assert tiny.model.is_gradient_checkpointing
        batch = tiny.batch([1, 2])
        tiny.model(**batch.inputs, labels=batch.labels).loss.backward()
        gradients.append({n: p.grad for n, p in tiny.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])


def test_another_process_needs_only_the_import(tmp_path):
    tiny = tiny_composed()
    tiny.save(tmp_path)
    code = (
        "import sys, mllm; from transformers import AutoModelForImageTextToText as M, AutoProcessor as P;"
        "m, p = M.from_pretrained(sys.argv[1]), P.from_pretrained(sys.argv[1]);"
        "print(type(m).__name__, type(p).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ComposedForConditionalGeneration", "ComposedProcessor"]
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), ComposedProcessor)


def test_refusals():
    tiny = tiny_composed()
    inputs = tiny.batch([1, 1]).inputs
    with pytest.raises(ModelError, match="each image needs 16 placeholders"):
        tiny.model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:1])
    with pytest.raises(ModelError, match="no pixel_values"):
        tiny.model(input_ids=inputs["input_ids"])
    with pytest.raises(ModelError, match=r"expected \(images, 3, 32, 32\)"):
        tiny.model(input_ids=inputs["input_ids"], pixel_values=torch.zeros(2, 3, 16, 16))
    with pytest.raises(ModelError, match="exactly one"):
        tiny.model()
    text_only = tiny.batch([0]).inputs
    assert torch.equal(
        tiny.model(**text_only).logits, tiny.model(**text_only, pixel_values=torch.zeros(0, 3, 32, 32)).logits
    )
