import math

import pytest
import safetensors.torch
import torch

from mllm.modeling import ComposedForConditionalGeneration
from mllm.testing_layouts import LAYOUTS, synthetic_checkpoint
from mllm.zoo.keys import KEYS
from mllm.zoo.keys.rules import interleaved_rotary, move, under
from mllm.zoo.keys.towers import MOONDREAM_SIGLIP
from mllm.zoo.published import Published, load_published
from mllm.zoo.systems import SYSTEMS
from umbel.errors import ModelError


def loaded(name, change=None):
    config = SYSTEMS[name].config("tiny")
    tensors = synthetic_checkpoint(name, config)
    if change:
        change(tensors)
    model = ComposedForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    return model, tensors, load_published(model, KEYS[name](config), tensors)


def test_the_tables_agree():
    assert len(SYSTEMS) == 22
    assert list(SYSTEMS) == list(KEYS) == list(LAYOUTS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_published_layout_loads_whole(name):
    model, tensors, report = loaded(name)
    report.check(name)
    assert report.whole
    assert report.loaded > 50
    assert not any(torch.isnan(parameter).any() for parameter in model.parameters())
    # Every number of the checkpoint that was not skipped is in the model once: nothing is used twice or lost.
    # Mamba's checkpoints repeat the embedding as the head.
    repeated = {
        k for k in tensors if k.endswith("lm_head.weight") and k.replace("lm_head", "backbone.embedding") in tensors
    }
    published = sum(
        value.double().square().sum() for key, value in tensors.items() if key not in {*report.skipped, *repeated}
    )
    state = {id(v): v for v in model.state_dict(keep_vars=True).values()}
    here = sum(value.detach().double().square().sum() for value in state.values())
    assert here == pytest.approx(float(published), rel=1e-6)
    assert all(report.skipped.values())


@pytest.mark.parametrize("name", ["bunny-v1", "moondream2", "cobra", "tinygpt-v"])
def test_a_partial_load_is_refused(name):
    _, tensors, _ = loaded(name)
    victim = next(key for key in tensors if "fc1.weight" in key)
    _, _, report = loaded(name, lambda t: t.pop(victim))
    assert report.missing
    assert not report.whole
    with pytest.raises(ModelError, match="1 missing"):
        report.check(name)
    _, _, report = loaded(name, lambda t: t.update({"surprise.weight": torch.zeros(1)}))
    assert report.unexpected == ("surprise.weight",)
    with pytest.raises(ModelError, match=r"1 unexpected \(first surprise.weight\).*nothing was loaded"):
        report.check(name)
    _, _, report = loaded(name, lambda t: t.update({victim: torch.zeros(3, 5)}))
    assert len(report.misshapen) == 1
    with pytest.raises(ModelError, match="1 misshapen"):
        report.check(name)


def test_a_fused_matrix_lacks_rows():
    _, _, report = loaded("imp-v1", lambda t: t.update({"transformer.h.0.mixer.Wqkv.weight": torch.zeros(190, 64)}))
    assert len(report.misshapen) == 3


def test_queries_keys_and_values_come_apart_in_order():
    model, tensors, _ = loaded("moondream2")
    x = torch.randn(5, 64)
    fused = x @ tensors["text_model.transformer.h.1.mixer.Wqkv.weight"].t()
    attention = model.language_model.model.layers[1].self_attn
    apart = [torch.nn.functional.linear(x, getattr(attention, f"{n}_proj").weight) for n in "qkv"]
    assert torch.allclose(fused, torch.cat(apart, 1), atol=1e-6)
    model, tensors, _ = loaded("vary-toy")
    w1, w2, out = (tensors[f"transformer.h.0.mlp.{n}.weight"] for n in ("w1", "w2", "c_proj"))
    x = torch.randn(5, 64)
    theirs = ((x @ w1.t()) * torch.nn.functional.silu(x @ w2.t())) @ out.t()
    assert torch.allclose(model.language_model.model.layers[0].mlp(x), theirs, atol=1e-6)


def test_metas_rotary_order_becomes_halves():
    """Rotated in pairs before, or in halves after: the same scores."""
    head, width, position = 8, 12, 5
    weight, x = torch.randn(2 * head, width), torch.randn(2, width)
    rule = interleaved_rotary("a", "b", head)
    turned = rule.how([weight], [weight.shape])[0]
    angles = position / 10000 ** (torch.arange(0, head, 2) / head)

    def pairs(v):
        z = torch.view_as_complex(v.reshape(2, 2, head // 2, 2)) * torch.polar(torch.ones(head // 2), angles)
        return torch.view_as_real(z).reshape(2, 2, head)

    def halves(v):
        v = v.reshape(2, 2, head)
        cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)
        rotated = torch.cat([-v[..., head // 2 :], v[..., : head // 2]], -1)
        return v * cos + rotated * sin

    one, two = pairs(x @ weight.t()), halves(x @ turned.t())
    assert torch.allclose((one[0] * one[1]).sum(-1), (two[0] * two[1]).sum(-1), atol=1e-4)


def test_moondreams_patches_are_the_convolution():
    weight = torch.randn(64, 3 * 8 * 8)
    rule = MOONDREAM_SIGLIP[0]
    conv = rule.how([weight], [torch.Size((64, 3, 8, 8))])[0]
    image = torch.randn(1, 3, 16, 16)
    patches = image.reshape(1, 3, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(4, -1)
    expected = (patches @ weight.t()).t().reshape(1, 64, 2, 2)
    assert torch.allclose(torch.nn.functional.conv2d(image, conv, stride=8), expected, atol=1e-4)


def test_gates_of_swiglu_and_zero_key_biases():
    model, tensors, _ = loaded("sphinx-tiny")
    first, second = tensors["llma.dinov2_vitg14.blocks.0.mlp.w12.weight"].chunk(2)
    mlp = model.vision_tower.second.encoder.layer[0].mlp
    assert torch.equal(mlp.gate_proj.weight, first)
    assert torch.equal(mlp.up_proj.weight, second)
    model, tensors, report = loaded("tinygpt-v")
    bias = model.vision_tower.encoder.layers[1].self_attn.qkv.bias
    assert torch.equal(bias[:64], tensors["visual_encoder.blocks.1.attn.q_bias"])
    assert not bias[64:128].any()
    assert any("qkv.bias" in line for line in report.reshaped)
    model, _, _ = loaded("cobra")
    assert not model.vision_tower.first.embeddings.position_embeddings[:, 0].any()


def test_a_tower_given_twice_comes_from_the_checkpoint_itself():
    config = SYSTEMS["bunny-v1"].config("tiny")
    tensors = synthetic_checkpoint("bunny-v1", config)
    again = {k.removeprefix("model.vision_tower.vision_tower."): v + 1 for k, v in tensors.items() if "vision" in k}
    model = ComposedForConditionalGeneration(config)
    report = load_published(model, KEYS["bunny-v1"](config), tensors | again)
    report.check("bunny")
    name = "encoder.layers.0.mlp.fc1.weight"
    own = tensors[f"model.vision_tower.vision_tower.vision_model.{name}"]
    assert torch.equal(model.vision_tower.state_dict()[name], own)
    assert sum("twice" in why for why in report.skipped.values()) > 20
    assert sum("behind the hidden state" in why for why in report.skipped.values()) > 5


def test_files_and_their_refusals(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    found = Published([("x.", tmp_path)])
    assert list(found) == ["x.a"]
    assert len(found) == 1
    assert torch.equal(found["x.a"], torch.ones(2))
    with pytest.raises(ModelError, match="give each checkpoint once"):
        Published([("", tmp_path), ("", tmp_path)])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="holds no safetensors weights: give"):
        Published([("", empty)])
    (empty / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        Published([("", empty)])
    (empty / "model.safetensors").write_bytes(b"not a header")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        Published([("", empty)])


def test_rules_are_exact():
    rule = move("a.{i}.b.{p}", "{i}.{p}")
    assert rule.match("a.3.b.bias") == {"i": "3", "p": "bias"}
    assert rule.match("aa.3.b.bias") is None
    assert rule.match("a.x.b.bias") is None
    assert rule.match("a.3.bXbias") is None
    assert under((rule,), "s.", "t.")[0].sources == ("s.a.{i}.b.{p}",)
