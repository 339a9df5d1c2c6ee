import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.losses import example_losses
from mllm.load import Base, load_base
from mllm.lora import attach_lora
from mllm.rows import one_example, row_map
from mllm.tasks.collate import Batch, Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image, tiny_composed, tiny_llava, tiny_qwen25vl
from mllm.tokens import METHODS, TokenPlan, attach_tokens
from mllm.tokens.layers import LayerDrop
from mllm.tokens.merge import REDUCERS, pool, prumerge, tome
from privacy.clipping import make_engine
from umbel.config.model import LoraConfig
from umbel.errors import ModelError


def tokens(images=2, n=16, width=8, seed=0):
    return torch.randn(images, n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", REDUCERS)
@given(n=st.sampled_from([4, 9, 10, 16]), share=st.floats(0.01, 1.0))
def test_a_reducer_gives_the_number_asked_for_and_knows_no_neighbours(name, n, share):
    keep, x = max(1, round(n * share)), tokens(3, n)
    out = REDUCERS[name](x, keep)
    assert out.shape == (3, keep, 8)
    assert torch.isfinite(out).all()
    alone = torch.cat([REDUCERS[name](x[i : i + 1], keep) for i in range(3)])
    assert torch.allclose(out, alone, atol=1e-6)
    if keep == n:
        assert torch.equal(out, x)


@pytest.mark.parametrize("name", REDUCERS)
def test_equal_tokens_stay_what_they_are(name):
    x = tokens(1, 1).expand(2, 16, 8).contiguous()
    assert torch.allclose(REDUCERS[name](x, 5), x[:, :5], atol=1e-6)


def test_tome_keeps_the_weighted_mean_and_merges_twins_first():
    x = tokens(1, 8)
    x[:, 3] = x[:, 2] * 2  # the same direction: the most similar pair of an even and an odd place
    out = tome(x, 7)
    assert torch.allclose(out[0, 2], 1.5 * x[0, 2], atol=1e-6)
    assert torch.allclose(out[0, 3:], x[0, 4:], atol=1e-6)
    assert torch.allclose(tome(x, 1)[0, 0], x[0].mean(dim=0), atol=1e-5)


def test_pool_of_a_grid_is_the_mean_of_its_cells():
    x = torch.arange(16.0).view(1, 16, 1)
    assert pool(x, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_prumerge_keeps_the_most_attended_place():
    x = torch.zeros(1, 4, 2)
    x[0, 2] = torch.tensor([8.0, 0.0])
    x[0, :2, 1] = 0.1
    assert prumerge(x, 1)[0, 0, 0] > 7


def test_gradients_reach_merged_tokens():
    for reduce in REDUCERS.values():
        x = tokens().requires_grad_()
        reduce(x, 4).sum().backward()
        assert (x.grad.abs().sum(dim=-1) > 0).all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    makers = {
        "composed": lambda: tiny_composed("siglip", layers=3),
        "llava": tiny_llava,
        "phi": lambda: tiny_composed("siglip", language="phi", layers=3),
        "phi3": lambda: tiny_composed("siglip", language="phi3", layers=3),
    }
    made = {}

    def get(name):
        if name not in made:
            tiny = makers[name]()
            made[name] = tiny.save(tmp_path_factory.mktemp(name))
        return load_base(str(made[name]), "none")

    return get


def batch_for(base, kept):
    """Three examples with one, two and no images, padded on the right, in text the placeholders that are left."""
    rng = np.random.default_rng(0)
    token = base.processor.tokenizer.convert_tokens_to_ids("<image>")
    rows = [[token] * kept * count + rng.integers(5, 25, size=4 + count).tolist() for count in (1, 2, 0)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill((mask == 0) | (ids == token), -100)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, labels, [1, 2, 0], 3)


PLANS = [TokenPlan(name, 0.25, 1) for name in METHODS]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.method)
@pytest.mark.parametrize("family", ["composed", "llava", "phi", "phi3"])
def test_clipping_stays_exact(family, plan, saved):
    """The book-keeping engine's sums and norms are the loop's, with adapters in tower, projector and language model."""
    base = saved(family)
    attached = attach_tokens(base.model, base.processor, plan)
    tuned = attach_lora(base, LoraConfig(rank=2, targets="language,vision,projector"), seed=0)
    noise = np.random.default_rng(0).normal(size=tuned.spec.size).astype(np.float32) * np.float32(0.05)
    tuned.load(tuned.vector() + noise)
    tuned.model.train()
    batch = batch_for(base, attached.kept)
    found = {}
    for kind in ("bookkeeping", "loop"):
        engine = make_engine(kind, tuned.model, tuned.parameters, 0.05)

        def split(whole, i):
            inputs = one_example(tuned.model, whole.inputs, whole.images_per_example, i)
            return Batch(inputs, whole.labels[i : i + 1], [whole.images_per_example[i]], 1)

        rows = row_map(tuned.model, batch.inputs, batch.images_per_example) if kind == "bookkeeping" else None
        seen = engine.accumulate(lambda part: example_losses(tuned.model, part), batch, rows, 3, split)
        found[kind] = (seen.norms, torch.cat([value.flatten() for value in engine.take().values()]))
    assert torch.allclose(found["bookkeeping"][0], found["loop"][0], rtol=1e-4)
    error = (found["bookkeeping"][1] - found["loop"][1]).norm() / found["loop"][1].norm()
    assert error < 1e-4
    assert found["loop"][1].norm() > 0


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.method)
def test_a_row_is_the_same_alone_and_padding_changes_nothing(plan, saved):
    base = saved("composed")
    attached = attach_tokens(base.model, base.processor, plan)
    batch = batch_for(base, attached.kept)
    with torch.no_grad():
        whole = base.model(**batch.inputs, use_cache=False).logits
        for i in range(3):
            length = int(batch.inputs["attention_mask"][i].sum())
            one = one_example(base.model, batch.inputs, [1, 2, 0], i)
            one = {k: v[:, :length] if k in ("input_ids", "attention_mask") else v for k, v in one.items()}
            alone = base.model(**one, use_cache=False).logits
            assert torch.allclose(whole[i, :length], alone[0], atol=2e-5)


@pytest.mark.parametrize("method", ["fastv", "withdraw"])
def test_later_tokens_do_not_change_earlier_predictions(method, saved):
    """What is dropped must not depend on an answer: logits before it stay the same whatever the answer is."""
    base = saved("composed")
    attach_tokens(base.model, base.processor, TokenPlan(method, 0.25, 1))
    batch = batch_for(base, 16)
    changed = {**batch.inputs, "input_ids": batch.inputs["input_ids"].clone()}
    changed["input_ids"][0, 18:] = 7
    with torch.no_grad():
        before = base.model(**batch.inputs, use_cache=False).logits[0, 16:18]
        after = base.model(**changed, use_cache=False).logits[0, 16:18]
    assert torch.allclose(before, after, atol=1e-5)


def test_withdrawal_is_a_forward_pass_without_images_from_that_layer_on(saved):
    """Text tokens after the last full layer attend to text alone: the oracle masks images there by hand."""
    base = saved("composed")
    batch = batch_for(base, 16)
    one = one_example(base.model, batch.inputs, [1, 2, 0], 0)
    length = int(batch.inputs["attention_mask"][0].sum())
    one = {k: v[:, :length] if k in ("input_ids", "attention_mask") else v for k, v in one.items()}
    model = base.model.language_model.model
    image = one["input_ids"][0] == base.model.config.image_token_id
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    def without_images(_layer, inputs, kwargs):
        return inputs, {
            **kwargs,
            "attention_mask": (causal & (~image | torch.eye(length, dtype=torch.bool)))[None, None],
        }

    handles = [layer.register_forward_pre_hook(without_images, with_kwargs=True) for layer in model.layers[1:]]
    with torch.no_grad():
        expected = base.model(**one, use_cache=False).logits[0, ~image]
        for handle in handles:
            handle.remove()
        attached = attach_tokens(base.model, base.processor, TokenPlan("withdraw", 0.5, 1))
        got = base.model(**one, use_cache=False).logits[0, ~image]
        attached.remove()
        plain = base.model(**one, use_cache=False).logits[0, ~image]
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_what_does_not_fit_is_refused(saved):
    base = saved("composed")
    with pytest.raises(ModelError, match="does not fit a language model of 3 layers"):
        attach_tokens(base.model, base.processor, TokenPlan("fastv", 0.5, 3))
    with pytest.raises(ModelError, match="unknown or impossible"):
        TokenPlan("pool", 0.0)
    with pytest.raises(ModelError, match="unknown or impossible"):
        TokenPlan("sieve")
    qwen = tiny_qwen25vl()
    with pytest.raises(ModelError, match=r"set model\.tokens to none"):
        attach_tokens(qwen.model, qwen.processor, TokenPlan("pool"))


@pytest.mark.parametrize("plan", [TokenPlan("fastv", 0.25, 1), TokenPlan("withdraw", 0.5, 1)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_layers_generate_alike_with_a_cache_and_without(plan, attention, saved):
    """Left padding, an example without an image, and a second sequence after the first."""
    base: Base = saved("composed")
    base.model.set_attn_implementation(attention)
    attached = attach_tokens(base.model, base.processor, plan)
    batch = batch_for(base, 16)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "output_logits": True}
    gaps = (batch.inputs["attention_mask"] == 0).sum(dim=1).tolist()
    left = {
        name: torch.stack([row.roll(gap) for row, gap in zip(value, gaps, strict=True)]) if value.ndim == 2 else value
        for name, value in batch.inputs.items()
    }
    alone = {name: value[1:2] if value.ndim == 2 else value[1:3] for name, value in left.items()}
    for inputs in (left, {"input_ids": torch.tensor([[5, 6, 7]])}, left, alone):
        found = [
            base.model.generate(**inputs, **options, return_dict_in_generate=True, use_cache=c) for c in (True, False)
        ]
        assert torch.allclose(torch.stack(found[0].logits), torch.stack(found[1].logits), atol=1e-4)
        assert torch.equal(found[0].sequences, found[1].sequences)
    cache = found[0].past_key_values
    assert cache.get_seq_length(1) < cache.get_seq_length(0)
    attached.remove()
    assert not hasattr(base.model, "umbel_drop")


def test_a_cache_goes_on_where_it_began_or_is_refused(saved):
    base: Base = saved("composed")
    attach_tokens(base.model, base.processor, TokenPlan("withdraw", 0.5, 1))
    batch = batch_for(base, 16)
    with torch.no_grad():
        first = base.model(**batch.inputs, use_cache=True)
        plain = base.model(**batch.inputs, use_cache=False).logits
        assert torch.allclose(first.logits, plain, atol=1e-5)
        base.model(**batch.inputs, use_cache=True)
        token = {"input_ids": batch.inputs["input_ids"][:, :1] * 0 + 5}
        with pytest.raises(ModelError, match="not the one that began with them"):
            base.model(**token, past_key_values=first.past_key_values)


def test_checkpointing_gives_the_same_gradients(saved):
    base = saved("composed")
    attach_tokens(base.model, base.processor, TokenPlan("fastv", 0.25, 1))
    tuned = attach_lora(base, LoraConfig(rank=2), seed=0)
    tuned.load(tuned.vector() + np.float32(0.01))
    batch, found = batch_for(base, 16), []
    tuned.model.train()
    for checkpointing in (False, True):
        if checkpointing:
            tuned.enable_gradient_checkpointing()
        tuned.model.zero_grad()
        example_losses(tuned.model, batch).sum().backward()
        found.append(torch.cat([p.grad.flatten().clone() for p in tuned.parameters.values()]))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("maker", [tiny_composed, tiny_llava])
def test_text_and_images_agree_through_the_collator(maker, tmp_path):
    """What the processor writes (or the collator cuts, for a model of the hub) fits what the projector gives."""
    tiny = maker()
    path = tmp_path / "a.png"
    random_image(0).save(path)
    attached = attach_tokens(tiny.model, tiny.processor, TokenPlan("tome", 0.25))
    assert attached.kept == max(1, attached.before // 4)
    source = ImageSource(path)
    examples = [Example((source,) * n, "what colour is the shape ?", "red") for n in (1, 2, 1)]
    collator = Collator(tiny.processor)
    batch = collator(examples)
    token = tiny.processor.tokenizer.convert_tokens_to_ids("<image>")
    counts = (batch.inputs["input_ids"] == token).sum(dim=1).tolist()
    assert counts == [attached.kept * len(e.images) for e in examples]
    assert batch.labels.shape == batch.inputs["input_ids"].shape
    with torch.no_grad():
        assert torch.isfinite(tiny.model(**batch.inputs, use_cache=False).logits).all()
    assert row_map(tiny.model, batch.inputs, batch.images_per_example).size == len(examples)
    attached.remove()
    again = Collator(tiny.processor)(examples)
    counts = (again.inputs["input_ids"] == token).sum(dim=1).tolist()
    assert counts == [attached.before * len(e.images) for e in examples]


def test_beams_repeat_the_images_of_shortened_text(saved):
    base = saved("composed")
    attached = attach_tokens(base.model, base.processor, TokenPlan("pool", 0.25))
    inputs = batch_for(base, attached.kept).inputs
    with torch.no_grad():
        assert base.model.generate(**inputs, num_beams=2, max_new_tokens=2).shape[0] == 3


def test_layers_without_attention_are_refused():
    layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
    for share in (0.0, 0.5):
        with pytest.raises(ModelError, match="is no attention layer"):
            LayerDrop(torch.nn.Embedding(3, 4), layers, 1, share, 2)
