"""What the engines refuse, in one sentence that names the parameter."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

from privacy.clipping import make_engine
from privacy.clipping.loop import LoopEngine
from tests.privacy.clipping.cells import base, cell
from umbel.errors import ModelError, PrivacyError, UnclaimedParameter
from umbel.rows import RowMap

torch.set_num_threads(1)
TARGET = r".*language_model.*(q_proj|down_proj)"


def _trained(config):
    model = get_peft_model(copy.deepcopy(base("llava").model), config)
    return model, {name: p for name, p in model.named_parameters() if p.requires_grad}


CONFIGS = {
    "dora": (LoraConfig(r=2, target_modules=TARGET, use_dora=True), "lora_"),
    "embedding": (LoraConfig(r=2, target_modules=["embed_tokens"]), "lora_embedding"),
    "saved embedding": (LoraConfig(r=2, target_modules=TARGET, modules_to_save=["embed_tokens"]), "embed_tokens"),
    "convolution": (LoraConfig(r=2, target_modules=["patch_embedding"]), "patch_embedding"),
    "ia3": (
        IA3Config(target_modules=r".*language_model.*(k_proj|down_proj)", feedforward_modules=r".*down_proj"),
        "ia3_l",
    ),
    "tokens": (LoraConfig(r=2, target_modules=TARGET, trainable_token_indices=[3]), "token"),
}


@pytest.mark.parametrize("kind", ["bookkeeping", "loop", "auto", "opacus", "opacus-ghost"])
@pytest.mark.parametrize("case", CONFIGS)
def test_unknown_parameters(case, kind):
    config, word = CONFIGS[case]
    model, trainable = _trained(config)
    with pytest.raises(UnclaimedParameter) as caught:
        make_engine(kind, model, trainable, 1.0)
    message = str(caught.value)
    assert any(name in message for name in trainable)
    assert word in message
    assert message.endswith(".")


def test_the_loop_can_be_told_to_take_anything():
    model, trainable = _trained(CONFIGS["dora"][0])
    assert set(LoopEngine(model, trainable, 1.0, any_parameter=True).take()) == set(trainable)


def test_an_unlisted_parameter():
    model, trainable = _trained(LoraConfig(r=2, target_modules=TARGET))
    left_out = next(iter(trainable))
    del trainable[left_out]
    with pytest.raises(UnclaimedParameter, match=left_out.replace(".", r"\.")):
        make_engine("bookkeeping", model, trainable, 1.0)


def test_a_tied_head_is_seen_before_or_at_the_first_step():
    model = copy.deepcopy(base("llava").model)
    for p in model.parameters():
        p.requires_grad_(False)
    model.lm_head.weight = model.get_input_embeddings().weight
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(UnclaimedParameter, match=r"lm_head|embed_tokens"):
        make_engine("bookkeeping", model, {"lm_head.weight": model.lm_head.weight}, 1.0)


def test_a_direct_use_of_a_weight_is_seen():
    model = nn.Sequential(nn.Linear(3, 3))
    trainable = dict(model.named_parameters())
    engine = make_engine("bookkeeping", model, trainable, 1.0)
    forward = lambda x: (model(x) @ model[0].weight).sum(dim=1)  # noqa: E731
    with pytest.raises(UnclaimedParameter, match=r"0\.weight"):
        engine.accumulate(forward, torch.randn(4, 3), RowMap.batch(4), 4)
    assert all(not value.any() for value in engine.take().values())


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_clipping_norm(norm):
    one = cell("llava", "language", "one")
    with pytest.raises(PrivacyError, match="Clipping norm"):
        make_engine("loop", one.model, one.trainable, norm)


def test_frozen_low_precision_none_and_unknown_engine():
    one = cell("llava", "language", "one")
    p = next(iter(one.trainable.values()))
    with pytest.raises(PrivacyError, match="unknown"):
        make_engine("functorch", one.model, one.trainable, 1.0)
    with pytest.raises(PrivacyError, match="No trainable"):
        make_engine("loop", one.model, {}, 1.0)
    p.requires_grad_(False)
    with pytest.raises(PrivacyError, match="frozen"):
        make_engine("loop", one.model, one.trainable, 1.0)
    p.requires_grad_(True)
    p.data = p.data.bfloat16()
    with pytest.raises(PrivacyError, match="float32"):
        make_engine("bookkeeping", one.model, one.trainable, 1.0)


def test_losses_must_be_one_an_example():
    one = cell("llava", "language", "one")
    engine = make_engine("bookkeeping", one.model, one.trainable, 1.0)
    with pytest.raises(PrivacyError, match="one floating number an example"):
        engine.accumulate(lambda b: one.forward(b).mean(), one.batch, one.rows, 3)
    with pytest.raises(PrivacyError, match="row map"):
        engine.accumulate(one.forward, one.batch, None, 3)
    with pytest.raises(PrivacyError, match="row map of 2"):
        engine.accumulate(one.forward, one.batch, RowMap.batch(2), 3)


def test_a_row_map_that_does_not_know_the_tower():
    one = cell("llava", "vision", "several")
    engine = make_engine("bookkeeping", one.model, one.trainable, 1.0)
    with pytest.raises(ModelError, match="loop engine"):
        engine.accumulate(one.forward, one.batch, RowMap.batch(3), 3)


def test_batch_norm_in_training_mode():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    engine = make_engine("bookkeeping", model, dict(model.named_parameters()), 1.0)
    with pytest.raises(PrivacyError, match="couples examples"):
        engine.accumulate(lambda x: model(x).sum(dim=1), torch.randn(4, 3), RowMap.batch(4), 4)
    model.eval()
    assert engine.accumulate(lambda x: model(x).sum(dim=1), torch.randn(4, 3), RowMap.batch(4), 4).norms.shape == (4,)
