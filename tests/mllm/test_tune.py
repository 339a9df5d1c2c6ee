import json
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch

from client.losses import example_losses
from mllm.load import load_base
from mllm.rows import one_example, row_map
from mllm.soft import attach_soft_tokens
from mllm.tasks.collate import Batch
from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl
from mllm.tune import attach
from privacy.clipping import make_engine
from privacy.clipping.auto import AutoEngine
from umbel.config.model import LoraConfig
from umbel.errors import AdapterError, ModelError, UnclaimedParameter

METHODS = ("lora", "dora", "ia3", "adapter", "prompt", "prefix")
SAME = ("lora", "dora", "ia3", "adapter")
MAKERS = {"composed": lambda: tiny_composed("siglip", "mlp", "llama"), "llava": tiny_llava}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            tiny = MAKERS[name]()
            made[name] = (tiny, tiny.save(tmp_path_factory.mktemp(name)))
        return made[name]

    return get


def moved(tuned, scale=0.05):
    vector = tuned.vector()
    return vector + np.random.default_rng(0).normal(size=vector.shape).astype(np.float32) * np.float32(scale)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.inputs, use_cache=False).logits


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8-weight-only"])
def test_every_method_is_one_flat_vector(method, family, quantization, saved):
    if quantization == "nf4" and family == "llava":
        pytest.skip("one family shows it")
    tiny, directory = saved(family)
    base = load_base(str(directory), quantization)
    batch = tiny.batch([1, 2, 0])
    plain = logits(base.model, batch)
    tuned = attach(base, LoraConfig(method=method, rank=2, tokens=3), seed=0)
    assert tuned.spec.size == sum(p.numel() for p in tuned.parameters.values())
    assert all(p.dtype == torch.float32 for p in tuned.parameters.values())
    assert {id(p) for p in tuned.model.parameters() if p.requires_grad} == {id(p) for p in tuned.parameters.values()}
    start, first = logits(tuned.model, batch), tuned.vector()
    assert start.shape == plain.shape
    assert torch.allclose(start, plain, atol=1e-4) == (method in SAME)
    tuned.load(moved(tuned))
    there = logits(tuned.model, batch)
    assert not torch.allclose(there, start, atol=1e-4)
    tuned.load(first)
    assert torch.equal(logits(tuned.model, batch), start)
    tuned.model.train()
    losses = example_losses(tuned.model, Batch(batch.inputs, batch.labels, [1, 2, 0], 3))
    tuned.load(moved(tuned))
    losses = example_losses(tuned.model, Batch(batch.inputs, batch.labels, [1, 2, 0], 3))
    losses.sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tuned.parameters.values())
    again = attach(load_base(str(directory), quantization), LoraConfig(method=method, rank=2, tokens=3), seed=0)
    assert again.spec.hash == tuned.spec.hash
    assert np.array_equal(again.vector(), first)
    with pytest.raises(AdapterError):
        tuned.load(first[:-1])
    tuned.model.eval()
    base = tuned.detach()
    assert torch.allclose(logits(base.model, batch), plain, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_company_change_nothing(method, saved):
    tiny, directory = saved("composed")
    tuned = attach(load_base(str(directory), "none"), LoraConfig(method=method, rank=2, tokens=3), seed=0)
    tuned.load(moved(tuned))
    right, left = tiny.batch([1, 2, 0]), tiny.batch([1, 2, 0], padding_side="left")
    a, b = logits(tuned.model, right), logits(tuned.model, left)
    for i in range(3):
        keep, other = right.inputs["attention_mask"][i].bool(), left.inputs["attention_mask"][i].bool()
        assert torch.allclose(a[i, keep], b[i, other], atol=1e-4)
        alone = one_example(tuned.model, right.inputs, [1, 2, 0], i)
        assert torch.allclose(logits(tuned.model, Batch(alone, right.labels, [1], 1))[0, keep], a[i, keep], atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "adapter", "ia3", "prompt", "prefix"])
def test_clipping_is_exact_or_the_engine_is_refused(method, saved):
    tiny, directory = saved("composed")
    targets = "language" if method in ("prompt", "prefix") else "language,vision,projector"
    tuned = attach(load_base(str(directory), "none"), LoraConfig(method=method, rank=2, targets=targets), seed=0)
    tuned.load(moved(tuned))
    tuned.model.train()
    made = tiny.batch([1, 2, 0])
    batch = Batch(made.inputs, made.labels, [1, 2, 0], 3)

    def split(whole, i):
        return Batch(one_example(tuned.model, whole.inputs, [1, 2, 0], i), whole.labels[i : i + 1], [1], 1)

    def clipped(kind):
        engine = make_engine(kind, tuned.model, tuned.parameters, 0.05)
        rows = None if kind.startswith("loop") else row_map(tuned.model, batch.inputs, [1, 2, 0])
        seen = engine.accumulate(lambda part: example_losses(tuned.model, part), batch, rows, 3, split)
        return seen.norms, torch.cat([value.flatten() for value in engine.take().values()])

    norms, total = clipped("loop-any")
    assert total.norm() <= 3 * 0.05 * 1.000001
    expected = torch.zeros_like(total)
    for i in range(3):
        tuned.model.zero_grad()
        example_losses(tuned.model, split(batch, i)).sum().backward()
        gradient = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in tuned.parameters.values()]
        )
        expected += gradient * min(1.0, 0.05 / float(gradient.norm()))
    assert torch.allclose(total, expected, rtol=1e-4, atol=1e-7)
    if tuned.any_parameter:
        with pytest.raises(UnclaimedParameter):
            make_engine("auto", tuned.model, tuned.parameters, 0.05)
    else:
        booked, other = clipped("bookkeeping")
        assert torch.allclose(booked, norms, rtol=1e-4)
        assert torch.allclose(other, total, rtol=1e-3, atol=1e-6)
        assert isinstance(make_engine("auto", tuned.model, tuned.parameters, 0.05), AutoEngine)


@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_plain_peft_loads_what_is_saved(method, saved, tmp_path):
    tiny, directory = saved("composed")
    tuned = attach(load_base(str(directory), "none"), LoraConfig(method=method, rank=2), seed=0)
    vector = moved(tuned)
    tuned.load(vector)
    batch = tiny.batch([1, 1])
    expected = logits(tuned.model, batch)
    tuned.save(tmp_path, vector)
    loaded = peft.PeftModel.from_pretrained(load_base(str(directory), "none").model, str(tmp_path))
    assert torch.allclose(logits(loaded, batch), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["adapter", "prompt", "prefix"])
def test_what_peft_has_no_format_for_says_so(method, saved, tmp_path):
    _, directory = saved("composed")
    tuned = attach(load_base(str(directory), "none"), LoraConfig(method=method, rank=2), seed=0)
    tuned.save(tmp_path)
    body = json.loads((tmp_path / "adapter_config.json").read_text())
    assert body["peft_type"] == "UMBEL"
    assert LoraConfig(**body["options"]) == LoraConfig(method=method, rank=2)
    with pytest.raises(ModelError, match=r"set strategy\.ranks to same"):
        tuned.at_rank(1)


def test_impossible_places_are_refused():
    qwen = tiny_qwen25vl()

    class Stub:
        model = qwen.model

    with pytest.raises(ModelError, match="positions of several dimensions"):
        attach(Stub(), LoraConfig(method="prompt"), seed=0)
    recurrent = SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(model_type="mamba")))
    for method in ("prompt", "prefix"):
        with pytest.raises(ModelError, match="mamba language model has no attention"):
            attach_soft_tokens(recurrent, method, 2)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_soft_tokens_generate_alike_with_a_cache_and_without(method, saved):
    tiny, directory = saved("composed")
    tuned = attach(load_base(str(directory), "none"), LoraConfig(method=method, tokens=3), seed=0)
    for parameter in tuned.parameters.values():  # as they begin, they would hardly be attended to
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    inputs = tiny.batch([1, 0, 2], padding_side="left").inputs
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "output_logits": True}
    model = tuned.model
    found = [model.generate(**inputs, **options, return_dict_in_generate=True, use_cache=c) for c in (True, False)]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.allclose(torch.stack(found[0].logits), torch.stack(found[1].logits), atol=1e-4)
    assert found[0].past_key_values.get_seq_length() == inputs["input_ids"].shape[1] + 3 + 5
    assert model(**inputs, use_cache=False).past_key_values is None


def test_soft_tokens_refuse_a_cache_that_began_without_them(saved):
    from transformers import DynamicCache, StaticCache

    tiny, directory = saved("composed")
    base = load_base(str(directory), "none")
    inputs, cache = tiny.batch([1]).inputs, DynamicCache()
    base.model(**inputs, past_key_values=cache)
    tuned = attach(base, LoraConfig(method="prompt", tokens=2), seed=0)
    token = {"input_ids": torch.tensor([[5]])}
    with pytest.raises(ModelError, match="began without the soft tokens"):
        tuned.model(**token, past_key_values=cache)
    static = StaticCache(tuned.model.config.get_text_config(), max_cache_len=64)
    with pytest.raises(ModelError, match="a dynamic cache"):
        tuned.model(**inputs, past_key_values=static)
