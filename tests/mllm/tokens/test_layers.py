"""FastV and withdrawal inside every language model of composed systems."""

import pytest
import torch

from mllm.language import LANGUAGES
from mllm.rows import one_example
from mllm.tokens import TokenPlan, attach_tokens
from umbel.errors import ModelError

ATTENDING = [name for name in LANGUAGES if name != "mamba"]
PLANS = [TokenPlan("fastv", 0.25, 1), TokenPlan("withdraw", 0.5, 1)]
GENERATION = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "output_logits": True}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def alone(model, batch, row):
    """The inputs of one example, without padding."""
    keep = batch.inputs["attention_mask"][row].bool()
    one = one_example(model, batch.inputs, batch.images_per_example, row)
    return {k: v[:, keep] if k in ("input_ids", "attention_mask") else v for k, v in one.items()}, keep


def kept_by_hand(model, inputs, images, share):
    """Which tokens stay after the first layer, bool [T], from that layer's own eager attention."""
    if not share:
        return ~images
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = model(**inputs, output_attentions=True, use_cache=False).attentions[0][0]
    model.set_attn_implementation("sdpa")
    seen = own[:, int(images.nonzero().max()) + 1] * images
    shares = (seen / seen.sum(dim=-1, keepdim=True)).mean(dim=0)
    best = shares.argsort(descending=True)[: -(-int(images.sum()) // round(1 / share))]
    return ~images | torch.isin(torch.arange(len(images)), best)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.method)
@pytest.mark.parametrize("language", ATTENDING)
def test_what_stays_is_computed_as_if_the_rest_were_masked(language, plan, composed):
    model, tiny = composed(language)
    one, _ = alone(model, tiny.batch([2, 1]), 0)
    images = one["input_ids"][0] == model.config.image_token_id
    keep = kept_by_hand(model, one, images, 0.25 if plan.method == "fastv" else 0)
    assert int((keep & images).sum()) == (8 if plan.method == "fastv" else 0)
    length = len(images)
    mask = torch.ones(length, length, dtype=torch.bool).tril() & (keep | torch.eye(length, dtype=torch.bool))

    def masked(_layer, inputs, kwargs):
        return inputs, {**kwargs, "attention_mask": mask[None, None]}

    handles = [
        layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in model.language_model.model.layers[1:]
    ]
    expected = logits(model, one)[0, keep]
    for handle in handles:
        handle.remove()
    plain = logits(model, one)[0, keep]
    attached = attach_tokens(model, tiny.processor, plan)
    found = logits(model, one)[0, keep]
    attached.remove()
    assert torch.allclose(found, expected, atol=2e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.allclose(logits(model, one)[0, keep], plain, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.method)
@pytest.mark.parametrize("language", ATTENDING)
def test_a_batch_gives_what_its_examples_give(language, plan, composed):
    model, tiny = composed(language)
    attach_tokens(model, tiny.processor, plan)
    batch = tiny.batch([1, 2, 0])
    whole = logits(model, batch.inputs)
    assert torch.isfinite(whole).all()
    for row in range(3):
        one, keep = alone(model, batch, row)
        assert torch.allclose(whole[row, keep], logits(model, one)[0], atol=2e-5)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.method)
@pytest.mark.parametrize("language", ATTENDING)
def test_a_cache_changes_nothing(language, plan, composed):
    model, tiny = composed(language)
    attach_tokens(model, tiny.processor, plan)
    options = {**GENERATION, "return_dict_in_generate": True}
    for counts in ([1, 2, 0], [2]):
        inputs = tiny.batch(counts, padding_side="left").inputs
        found = [model.generate(**inputs, **options, use_cache=cache) for cache in (True, False)]
        assert torch.equal(found[0].sequences, found[1].sequences)
        assert torch.allclose(torch.stack(found[0].logits), torch.stack(found[1].logits), atol=1e-4)
    cache = found[0].past_key_values
    assert cache.get_seq_length(1) < cache.get_seq_length(0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_tokens_are_no_reduction(language, composed):
    model, tiny = composed(language)
    batch = tiny.batch([1, 2, 0])
    plain = logits(model, batch.inputs)
    attached = attach_tokens(model, tiny.processor, TokenPlan("fastv", 1.0, 1))
    assert torch.equal(logits(model, batch.inputs), plain)
    attached.remove()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.method)
def test_a_state_has_no_tokens_to_drop(plan, composed):
    model, tiny = composed("mamba")
    with pytest.raises(ModelError, match="is no attention layer, so image tokens cannot be dropped there: use pool"):
        attach_tokens(model, tiny.processor, plan)
    assert not hasattr(model, "umbel_drop")
    batch = tiny.batch([1, 2])
    assert torch.isfinite(logits(model, batch.inputs)).all()


def test_attention_that_cannot_be_asked_is_refused(composed):
    model, tiny = composed("llama")
    attention = model.language_model.model.layers[0].self_attn
    attention.fused = attention.q_proj
    del attention.q_proj
    with pytest.raises(ModelError, match="neither q_proj and k_proj nor qkv_proj: use withdraw"):
        attach_tokens(model, tiny.processor, PLANS[0])
