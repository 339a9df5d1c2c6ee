import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.losses import example_losses
from mllm.balance import balance_loss, balance_losses, recorded_routing
from mllm.language.upcycled import ExpertMlp
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.rows import one_example, row_map
from mllm.tasks.collate import Batch
from mllm.testing import tiny_composed
from mllm.tokens import TokenPlan, attach_tokens
from mllm.tune import attach
from privacy.clipping.bookkeeping import BookkeepingEngine
from privacy.clipping.loop import LoopEngine
from umbel.config.model import LoraConfig

MIXTURES = ("upcycled", "mixtral", "qwen2-moe")


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 1000), st.data())
def test_the_loss_is_one_where_all_is_even_and_grows_with_the_skew(tokens, experts, seed, data):
    top_k = data.draw(st.integers(1, experts))
    uniform = torch.full((1, tokens, experts), 1 / experts)
    assert balance_loss(uniform, torch.ones(1, tokens), top_k)[0] == pytest.approx(1.0)
    drawn = torch.randn(2, tokens, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    found = balance_loss(drawn, torch.ones(2, tokens), top_k)
    assert (found <= experts / top_k + 1e-5).all()
    certain = torch.zeros(1, tokens, experts)
    certain[..., 0] = 1.0
    assert balance_loss(certain, torch.ones(1, tokens), 1)[0] == pytest.approx(experts)


def test_padding_and_other_examples_do_not_count():
    drawn = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [0] * 6])
    found = balance_loss(drawn, mask, 2)
    assert found[2] == 0
    assert torch.allclose(found[1:2], balance_loss(drawn[1:2, :3], mask[1:2, :3], 2))
    assert torch.allclose(found[:1], balance_loss(drawn[:1], mask[:1], 2))


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request, tmp_path_factory):
    torch.set_num_threads(1)
    tiny = tiny_composed("siglip", "mlp", request.param, layers=3)
    generator = torch.Generator().manual_seed(3)
    for module in tiny.model.modules():  # a router that is zero, or nearly, spreads everything alike
        if isinstance(module, ExpertMlp):
            module.router.data.copy_(torch.randn(module.router.shape, generator=generator) * 0.3)
        elif type(module).__name__.endswith("TopKRouter"):
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) * 0.3)
    return tiny, tiny.save(tmp_path_factory.mktemp(request.param))


def tuned(path):
    model = attach_lora(load_base(str(path), "none"), LoraConfig(rank=2, alpha=4.0, targets="language"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def as_batch(made):
    return Batch(made.inputs, made.labels, made.images_per_example, len(made.labels))


def test_every_layer_of_experts_is_seen_and_nothing_is_left_behind(mixture):
    tiny, _ = mixture
    batch = tiny.batch([1, 0, 2])
    hooks = sum(len(module._forward_hooks) for module in tiny.model.modules())
    with recorded_routing(tiny.model) as routing:
        tiny.model(**batch.inputs, use_cache=False)
    assert len(routing) == (2 if any(isinstance(m, ExpertMlp) for m in tiny.model.modules()) else 3)
    found = balance_losses(routing, batch.inputs["attention_mask"])
    assert found.shape == (3,)
    assert (found > 0.9).all()
    assert found.std() > 1e-4
    assert sum(len(module._forward_hooks) for module in tiny.model.modules()) == hooks
    assert not any(m.recording or m.probabilities is not None for m in tiny.model.modules() if isinstance(m, ExpertMlp))


def test_an_examples_loss_depends_on_that_example_alone(mixture):
    """And so clipping per example stays exact: book-keeping's norms and sums are the loop's."""
    tiny, path = mixture
    model = tuned(path)
    batch = as_batch(tiny.batch([1, 0, 2, 0]))
    counts = batch.images_per_example

    def one(part, i):
        inputs = one_example(model.model, part.inputs, counts, i)
        return Batch(inputs, part.labels[i : i + 1], [counts[i]], 1)

    with torch.no_grad():
        plain, whole = example_losses(model.model, batch), example_losses(model.model, batch, 0.5)
        singles = torch.cat([example_losses(model.model, one(batch, i), 0.5) for i in range(4)])
    assert torch.allclose(whole, singles, atol=1e-5)
    assert (whole - plain > 0.4).all()

    rows, found = row_map(model.model, batch.inputs, counts), {}
    for weight in (0.0, 0.5):
        for kind in (BookkeepingEngine, LoopEngine):
            engine = kind(model.model, model.parameters, 0.5)
            seen = engine.accumulate(
                lambda part, w=weight: example_losses(model.model, part, w),
                batch,
                rows if kind is BookkeepingEngine else None,
                4,
                one,
            )
            found[weight, kind] = (seen.norms, torch.cat([v.reshape(-1) for v in engine.take().values()]))
    (books, booked), (loops, looped) = found[0.5, BookkeepingEngine], found[0.5, LoopEngine]
    assert torch.allclose(books, loops, rtol=2e-4, atol=1e-6)
    assert torch.allclose(booked, looped, atol=2e-4 * float(looped.abs().max()))
    assert (found[0.0, LoopEngine][0] - loops).abs().max() > 1e-4  # the term has a gradient


def test_checkpointing_changes_no_gradient_and_a_dense_model_has_no_such_term(mixture):
    tiny, path = mixture
    model = tuned(path)
    batch = as_batch(tiny.batch([1, 0]))

    def gradients():
        model.model.zero_grad()
        example_losses(model.model, batch, 0.5).sum().backward()
        return {name: p.grad.clone() for name, p in model.parameters.items() if p.grad is not None}

    model.model.train()
    plain = gradients()
    model.enable_gradient_checkpointing()
    again = gradients()
    assert all(torch.allclose(plain[n], again[n], rtol=1e-4, atol=1e-6) for n in plain)
    dense = tiny_composed("siglip")
    with torch.no_grad():
        assert torch.equal(example_losses(dense.model, batch, 0.5), example_losses(dense.model, batch))


@pytest.mark.parametrize("what", ["fastv", "prompt"])
def test_dropped_and_soft_tokens_do_not_count(what, mixture):
    tiny, path = mixture
    base = load_base(str(path), "none")
    batch = as_batch(tiny.batch([1, 2, 0]))
    if what == "fastv" and tiny.model.config.text_config.model_type == "phi":
        attach_tokens(base.model, base.processor, TokenPlan("withdraw", 1.0, 1))
    elif what == "fastv":
        attach_tokens(base.model, base.processor, TokenPlan("fastv", 0.5, 1))
    else:
        attach(base, LoraConfig(method="prompt", tokens=3), seed=0)
    with torch.no_grad():
        whole = example_losses(base.model, batch, 1.0)
        singles = [
            example_losses(
                base.model,
                Batch(one_example(base.model, batch.inputs, [1, 2, 0], i), batch.labels[i : i + 1], [0], 1),
                1.0,
            )
            for i in range(3)
        ]
    assert torch.allclose(whole, torch.cat(singles), atol=1e-5)
