"""A model with side terms and with factors of several ranks."""

import numpy as np
import pytest
import torch

from mllm.backends import dequantized_weight
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.loss import per_example_loss
from mllm.testing import tiny_composed
from umbel.config.model import LoraConfig
from umbel.errors import AdapterError
from umbel.side import SideTerm


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tiny = tiny_composed()
    return tiny, tiny.save(tmp_path_factory.mktemp("base"))


def tune(path, quantization="none", **options):
    base = load_base(str(path), quantization)
    return attach_lora(
        base, LoraConfig(**({"rank": 3, "alpha": 6.0, "targets": "language,projector"} | options)), seed=0
    )


def random_state(tuned, seed=0, rank=2, scale=0.2):
    rng = np.random.default_rng(seed)
    vector = (rng.standard_normal(tuned.spec.size) * scale).astype(np.float32)
    side = {
        pair.module: SideTerm(
            (rng.standard_normal((rank, pair.a.shape[1])) * scale).astype(np.float32),
            (rng.standard_normal((pair.b.shape[0], rank)) * scale).astype(np.float32),
        )
        for pair in tuned.spec.pairs[::2]
    }
    return vector, side


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.inputs).logits


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_side_terms_move_the_frozen_weight(saved, quantization):
    """Equal to a model of full precision whose weights were moved by side.B side.A."""
    tiny, path = saved
    tuned, batch = tune(path, quantization), tiny.batch([1, 1], seed=1)
    vector, side = random_state(tuned)
    plain = logits(tuned.model, batch)
    tuned.load(vector, side)
    found = logits(tuned.model, batch)

    reference = tune(path, "none")
    reference.load(vector)
    for pair in tuned.spec.pairs:
        moved = dequantized_weight(tuned.model.get_submodule(pair.module).base_layer).float()
        if pair.module in side:
            moved = moved + torch.from_numpy(side[pair.module].b @ side[pair.module].a)
        reference.model.get_submodule(pair.module).base_layer.weight.data = moved
    # Linears without LoRA are quantized as well: only a base of full precision can be compared as a whole.
    if quantization == "none":
        assert torch.allclose(found, logits(reference.model, batch), atol=1e-4)
    assert (found - plain).abs().max() > 1e-2
    with tuned.model.disable_adapter():
        assert torch.equal(logits(tuned.model, batch), plain)
    tuned.load(vector)
    without = logits(tuned.model, batch)
    assert (found - without).abs().max() > 1e-2
    tuned.load(vector, side)
    assert torch.equal(logits(tuned.model, batch), found)


def test_gradients_pass_through_side_terms(saved):
    """The factors' gradients are those of a model whose weights were moved."""
    tiny, path = saved
    tuned, batch = tune(path), tiny.batch([1, 1], seed=1)
    vector, side = random_state(tuned)
    reference = tune(path)
    for module, term in side.items():
        reference.model.get_submodule(module).base_layer.weight.data += torch.from_numpy(term.b @ term.a)
    found = []
    for model, terms in ((tuned, side), (reference, {})):
        model.load(vector, terms)
        model.model.zero_grad()
        per_example_loss(model.model(**batch.inputs).logits, batch.labels).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.parameters.items()})
    assert max(float(g.abs().max()) for g in found[1].values()) > 1e-3
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-4), name


@pytest.mark.parametrize("rslora", [False, True])
def test_plain_peft_loads_factors_and_side_terms_as_one_adapter(saved, tmp_path, rslora):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    tiny, path = saved
    tuned, batch = tune(path, rslora=rslora), tiny.batch([1, 1], seed=1)
    vector, side = random_state(tuned)
    tuned.load(vector, side)
    tuned.save(tmp_path / "adapter", vector, side)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(path), tmp_path / "adapter").eval()
    assert model.peft_config["default"].r == 5
    assert torch.allclose(logits(model, batch), logits(tuned.model, batch), atol=1e-5)


def test_factors_of_another_rank_compute_with_their_own_scale(saved):
    tiny, path = saved
    tuned, batch = tune(path), tiny.batch([1, 1], seed=1)
    small, alone = tuned.at_rank(1), tune(path, rank=1)
    assert small.spec.hash == alone.spec.hash
    assert tuned.at_rank(3) is tuned
    assert small.at_rank(3) is tuned
    assert small.at_rank(1) is small
    vector, side = random_state(small)
    top, _ = random_state(tuned, seed=5)
    tuned.load(top)
    before = logits(tuned.model, batch)
    small.load(vector, side)
    alone.load(vector, side)
    assert torch.equal(logits(small.model, batch), logits(alone.model, batch))
    assert np.array_equal(small.vector(), vector)
    assert np.array_equal(tuned.vector(), top)
    trained = {name: p for name, p in small.model.named_parameters() if p.requires_grad}
    assert {tuple(p.shape) for p in trained.values()} == {t.shape for t in small.spec}
    tuned.load(top)
    assert torch.equal(logits(tuned.model, batch), before)


def test_a_saved_adapter_of_another_rank_says_so(saved, tmp_path):
    _, path = saved
    tuned = tune(path)
    tuned.at_rank(1).load(tuned.at_rank(1).spec.zeros())
    tuned.save(tmp_path, tuned.vector())
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(tmp_path).r == 3


def test_a_side_term_of_another_layer_is_refused_and_nothing_changes(saved):
    tiny, path = saved
    tuned, batch = tune(path), tiny.batch([1], seed=1)
    vector, side = random_state(tuned)
    tuned.load(vector, side)
    before = logits(tuned.model, batch)
    first, *_ = side.values()
    with pytest.raises(AdapterError, match="no LoRA factors"):
        tuned.load(vector, {"base_model.model.elsewhere": first})
    assert torch.equal(logits(tuned.model, batch), before)


def test_a_detached_base_carries_no_side_terms(saved):
    tiny, path = saved
    tuned, batch = tune(path), tiny.batch([1], seed=1)
    with tuned.model.disable_adapter():
        plain = logits(tuned.model, batch)
    tuned.load(*random_state(tuned))
    base = tuned.detach()
    assert torch.equal(logits(base.model, batch), plain)
