"""What every encoder, projector and language model must do, each in a model whose other parts are the plainest."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mllm.encoders import ENCODERS
from mllm.language import LANGUAGES
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.loss import per_example_loss
from mllm.parts import PARTS, linear_sites
from mllm.projectors import PROJECTORS
from mllm.rows import one_example, row_map
from mllm.testing import random_image, tiny_composed
from privacy.clipping.bookkeeping import BookkeepingEngine
from privacy.clipping.loop import LoopEngine
from umbel.config.model import LoraConfig

MODELS = {
    **{f"encoder-{name}": (name, "mlp", "llama") for name in ENCODERS},
    **{f"projector-{name}": ("siglip", name, "llama") for name in PROJECTORS if name != "mlp"},
    **{f"language-{name}": ("siglip", "mlp", name) for name in LANGUAGES if name != "llama"},
}
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
QUANTIZED_ERROR = {"nf4": 0.25, "int8-weight-only": 0.02}
"""Relative error of logits that docs/models.md states for tiny random models; trained ones do far better."""


@pytest.fixture(scope="module", params=MODELS)
def part(request, tmp_path_factory):
    torch.set_num_threads(1)
    tiny = tiny_composed(*MODELS[request.param])
    generator = torch.Generator().manual_seed(0)
    for module in tiny.model.modules():  # initialisations that are all zero would hide a mistake
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1 and name == "bias" and type(module).__name__ == "Linear":
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return tiny, tiny.save(tmp_path_factory.mktemp(request.param))


def tuned(path, quantization="none"):
    base = load_base(str(path), quantization)
    usable = {site.part for site in linear_sites(base.model) if not site.exempt}
    config = LoraConfig(rank=2, alpha=4.0, targets=",".join(p for p in PARTS if p in usable))
    model = attach_lora(base, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def gradients(model, batch):
    model.model.zero_grad()
    per_example_loss(model.model(**batch.inputs).logits, batch.labels).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.parameters.items()}


def test_shapes_and_saving(part):
    tiny, path = part
    config, batch = tiny.model.config, tiny.batch([1, 0, 2])
    assert batch.inputs["pixel_values"].shape[1:] == (3, 32, 32)
    features = tiny.model.get_image_features(batch.inputs["pixel_values"])
    assert features.shape == (3, config.tokens_per_image, tiny.model.get_input_embeddings().weight.shape[1])
    expected = tiny.model(**batch.inputs).logits
    assert expected.shape == (*batch.labels.shape, config.text_config.vocab_size)
    assert torch.isfinite(expected).all()
    loaded = AutoModelForImageTextToText.from_pretrained(path)
    assert all(torch.equal(a, b) for a, b in zip(tiny.model.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(loaded(**batch.inputs).logits, expected)


def test_a_batch_equals_its_examples_on_either_padding_side(part):
    """One image, none, and three; one text of two hundred words; the same texts padded right and left."""
    tiny, _ = part
    texts = ["<image> what colour is the shape ?", "yes " * 200, "a <image> in <image> red <image> ? no no no"]
    images = [[random_image(0)], [], [random_image(1), random_image(2), random_image(3)]]
    with torch.no_grad():
        singles = [tiny.model(**tiny.processor([t], [i])).logits[0] for t, i in zip(texts, images, strict=True)]
        for side in ("right", "left"):
            inputs = tiny.processor(texts, images, padding_side=side)
            together = tiny.model(**inputs).logits
            for index, single in enumerate(singles):
                mine = together[index][inputs["attention_mask"][index] == 1]
                assert torch.allclose(mine, single, atol=1e-5), (side, index)
        other = tiny.model(**tiny.processor([texts[0]], [[random_image(9)]])).logits[0]
    assert (other - singles[0]).abs().max() > 1e-6  # the image is seen


def test_generation_with_a_cache_equals_without(part):
    tiny, _ = part
    inputs = tiny.batch([1, 0, 2], padding_side="left").inputs
    wanted = {"output_logits": True, "return_dict_in_generate": True}
    found = [tiny.model.generate(**inputs, **OPTIONS, **wanted, use_cache=cache) for cache in (True, False)]
    cached = found[0].sequences
    assert found[0].past_key_values is not None
    assert torch.equal(cached, found[1].sequences)
    assert torch.allclose(torch.stack(found[0].logits), torch.stack(found[1].logits), atol=1e-5)
    row = inputs["attention_mask"][0] == 1
    alone = {"input_ids": inputs["input_ids"][:1, row], "attention_mask": inputs["attention_mask"][:1, row]}
    alone["pixel_values"] = inputs["pixel_values"][:1]
    assert torch.equal(tiny.model.generate(**alone, **OPTIONS)[0, -4:], cached[0, -4:])


def test_factors_learn_and_are_clipped_per_example(part):
    """Gradients reach every factor; checkpointing changes none; book-keeping norms are the loop's."""
    tiny, path = part
    model = tuned(path)
    batch = tiny.batch([1, 0, 2, 0])
    plain = gradients(model, batch)
    still = [name for name, gradient in plain.items() if not gradient.abs().sum() > 0]
    assert not still, still

    rows = row_map(model.model, batch.inputs, batch.images_per_example)
    found = {}
    for kind in (BookkeepingEngine, LoopEngine):
        engine = kind(model.model, model.parameters, 0.5)
        seen = engine.accumulate(
            lambda pair: per_example_loss(model.model(**pair[0]).logits, pair[1]),
            (batch.inputs, batch.labels),
            rows if kind is BookkeepingEngine else None,
            4,
            lambda pair, i: (one_example(model.model, pair[0], batch.images_per_example, i), pair[1][i : i + 1]),
        )
        found[kind] = (seen.norms, engine.take())
    (books, booked), (loops, looped) = found[BookkeepingEngine], found[LoopEngine]
    assert torch.allclose(books, loops, rtol=2e-4, atol=1e-6), (books, loops)
    scale = max(value.abs().max() for value in looped.values())
    assert all(torch.allclose(booked[n], looped[n], atol=2e-4 * float(scale)) for n in looped)

    model.model.train()
    model.enable_gradient_checkpointing()
    again = gradients(model, batch)
    assert all(torch.allclose(plain[n], again[n], rtol=1e-4, atol=1e-6) for n in plain)


@pytest.mark.parametrize("quantization", QUANTIZED_ERROR)
def test_quantized_logits_stay_near(part, quantization):
    tiny, path = part
    batch = tiny.batch([1, 0, 2])
    base = load_base(str(path), quantization)
    assert base.report.backend == quantization
    with torch.no_grad():
        expected, found = tiny.model(**batch.inputs).logits, base.model(**batch.inputs).logits
    assert 0 < (found - expected).norm() / expected.norm() < QUANTIZED_ERROR[quantization]
