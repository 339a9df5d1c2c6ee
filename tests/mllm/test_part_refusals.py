"""Pairs of parts that cannot work are refused in one sentence; and what single parts promise beyond the contract."""

import pytest
import torch
import transformers

from mllm.config import ComposedConfig
from mllm.encoders import ENCODERS
from mllm.encoders.convnext import ConvNext
from mllm.encoders.pair import PairConfig, PairTower
from mllm.encoders.s2 import S2Config, S2Tower
from mllm.language import LANGUAGES
from mllm.language.minicpm import minicpm_config
from mllm.language.upcycled import ExpertMlp, upcycle
from mllm.projectors import PROJECTORS
from mllm.projectors.attention import CrossAttention, sine_positions
from mllm.projectors.ldp import squeezed
from mllm.testing import tiny_composed
from umbel.errors import ModelError


def config(encoder="siglip", projector=None, language="llama", **changes):
    vision = ENCODERS[encoder].tiny(64, 1, 32) if isinstance(encoder, str) else encoder
    text = LANGUAGES[language].tiny(64, 1, 64, False) if isinstance(language, str) else language
    return ComposedConfig(vision_config=vision, text_config=text, projector=projector, image_token_id=4, **changes)


def build(**parts):
    return tiny_composed().model.__class__(config(**parts))


def vit(**changes):
    return transformers.SiglipVisionConfig(
        **{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        | {"image_size": 32, "patch_size": 8}
        | changes
    )


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"encoder": vit(num_attention_heads=5)}, "64 is not divisible by its 5 heads"),
        ({"encoder": vit(patch_size=64)}, "choose a patch_size that fits"),
        ({"encoder": "resnet", "vision_feature_layer": -2}, "resnet encoder offers -1 only"),
        ({"encoder": "sam", "vision_feature_layer": 0}, "sam encoder offers -1 only"),
        ({"encoder": vit(), "vision_feature_layer": 3}, "hidden states -2 to 1"),
        ({"projector": {"type": "ldp-v2"}}, "pools to 12 x 12, but the image grid is 4 x 4"),
        ({"projector": {"type": "c-abstractor"}}, "pools to 12 x 12, but the image grid is 4 x 4"),
        ({"projector": {"type": "c-abstractor", "side": 0}}, "side=0"),
        ({"projector": {"type": "vss", "directions": 3}}, "3 directions: use 2 or 4"),
        ({"projector": {"type": "perceiver", "latents": 0}}, "latents=0"),
        ({"projector": {"type": "q-former", "tokens": 3}}, "its options are queries=32"),
        ({"projector": {"type": "spatial"}}, "'spatial' is unknown"),
        ({"language": transformers.GPT2Config()}, "'gpt2' is unknown"),
        (
            {"language": transformers.PhiConfig(hidden_size=62, num_attention_heads=4)},
            "62 is not divisible by its 4 heads",
        ),
        (
            {"language": transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=3)},
            "4 heads are not divisible by its 3 key and value heads",
        ),
    ],
)
def test_impossible_configurations(parts, sentence):
    with pytest.raises(ModelError, match=sentence) as found:
        config(**parts)
    assert str(found.value).endswith(".")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"projector": {"type": "resampler", "side": 2, "head": 48}}, "divisible by head=48, but it is 64"),
        ({"projector": {"type": "perceiver", "head": 48}}, "divisible by head=48, but it is 64"),
        ({"projector": {"type": "q-former", "width": 64, "heads": 5}}, "divisible by heads=5, but it is 64"),
        ({"projector": {"type": "fused-mlp", "factor": 0}}, "factor=0"),
        ({"projector": {"type": "mlp", "depth": 0}}, "depth of at least 1"),
    ],
)
def test_widths_that_cannot_be_divided(parts, sentence):
    with pytest.raises(ModelError, match=sentence):
        build(**parts)


def test_joined_towers_that_do_not_fit():
    with pytest.raises(ModelError, match="cannot be joined by 'sum': choose channels or mining"):
        PairConfig(first_config=vit(), second_config=vit(), join="sum")
    with pytest.raises(ModelError, match="they are 4 x 4 and 3 x 3"):
        config(encoder=PairConfig(first_config=vit(image_size=24), second_config=vit(), join="mining"))
    with pytest.raises(ModelError, match=r"S2 scales \[2, 1\] cannot be used"):
        S2Config(tower_config=vit(), scales=[2, 1])
    with pytest.raises(ModelError, match="convnext encoder divides images by 8, but image_size is 36"):
        config(encoder=transformers.ConvNextConfig(image_size=36, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    with pytest.raises(ModelError, match="divisible by encoders=2, but it is 65"):
        PROJECTORS["linear-per-encoder"].build({}, (4, 4), (64, 64), 65)
    sam = ENCODERS["sam"].tiny(64, 1, 32)
    sam.sam_config.patch_size = 5
    with pytest.raises(ModelError, match="divisible by its patch_size"):
        config(encoder=sam)


def test_joined_channels_hold_both_towers():
    torch.manual_seed(0)
    scale, shift = [0.5, 0.25, 2.0], [0.1, 0.0, -0.1]
    made = PairConfig(first_config=vit(), second_config=vit(image_size=16), second_scale=scale, second_shift=shift)
    tower = PairTower(made).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = tower(pixels).last_hidden_state
        assert tokens.shape == (2, 16, 128)
        assert torch.equal(tokens[..., :64], tower.first(pixel_values=pixels).last_hidden_state)
        small = torch.nn.functional.interpolate(pixels, size=(16, 16), mode="bicubic", antialias=True)
        again = small * torch.tensor(scale).view(1, 3, 1, 1) + torch.tensor(shift).view(1, 3, 1, 1)
        plane = tower.second(pixel_values=again).last_hidden_state.transpose(1, 2).reshape(2, 64, 2, 2)
        wide = torch.nn.functional.interpolate(plane, size=(4, 4), mode="bilinear").flatten(2).transpose(1, 2)
        assert torch.allclose(tokens[..., 64:], wide, atol=1e-6)


def test_mining_stays_inside_its_cell():
    """A token changes when its own corner of the fine image changes, and no other token does."""
    torch.manual_seed(0)
    tower = PairTower(PairConfig(first_config=vit(image_size=16), second_config=vit(), join="mining")).eval()
    low, high = torch.randn(1, 4, 64), torch.randn(1, 4, 4, 64)
    changed = high.clone()
    changed[0, 2] = torch.randn(4, 64)
    with torch.no_grad():
        moved = (tower.mining(low, changed) - tower.mining(low, high)).abs().sum(-1)[0]
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3]].abs().max() == 0


def test_s2_puts_its_tiles_back_in_place():
    """At scale two, a change of one quarter of the image moves that quarter of the pooled grid only."""
    torch.manual_seed(0)
    tower = S2Tower(S2Config(tower_config=vit(image_size=16), scales=[1, 2])).eval()
    pixels = torch.rand(1, 3, 32, 32)
    other = pixels.clone()
    other[..., 16:, :16] = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        one, two = tower(pixels).last_hidden_state, tower(other).last_hidden_state
    assert one.shape == (1, 4, 128)
    moved = (one - two)[0, :, 64:].abs().sum(-1)
    assert moved[2] > 1e-4
    assert moved[[0, 1, 3]].max() < 1e-5


def test_joined_stages_of_a_convnext():
    encoder, made = ConvNext(), ENCODERS["convnext"].tiny(64, 1, 32)
    made.join_stages = True
    assert encoder.grid(made) == (8, 8)
    assert encoder.width(made) == 96
    tokens = encoder.features(encoder.tower(made).eval(), torch.rand(1, 3, 32, 32), -1)
    assert tokens.shape == (1, 64, 96)


def test_sine_positions_and_attention_equal_pytorchs():
    positions = sine_positions(2, 3, 8, torch.zeros(1))
    assert positions.shape == (6, 8)
    assert torch.equal(positions[0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))
    assert torch.allclose(positions[4, :2], torch.tensor([1.0, 0.01]).sin())  # column 1
    assert torch.allclose(positions[4, 4:6], torch.tensor([1.0, 0.01]).sin())  # row 1
    torch.manual_seed(0)
    mine, theirs = CrossAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    q, k, v = theirs.in_proj_weight.chunk(3)
    for layer, weight in (
        (mine.q_proj, q),
        (mine.k_proj, k),
        (mine.v_proj, v),
        (mine.out_proj, theirs.out_proj.weight),
    ):
        layer.weight.data.copy_(weight)
        layer.bias.data.zero_()
    queries, keys = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    assert torch.allclose(mine(queries, keys, keys), theirs(queries, keys, keys)[0], atol=1e-6)


def test_squeezed_widths_follow_mobilenet():
    assert [squeezed(width) for width in (64, 2048, 2560, 100)] == [16, 512, 640, 24]


def test_minicpm_scales_what_mup_says():
    made = minicpm_config(
        scale_emb=12, scale_depth=1.4, dim_model_base=256, hidden_size=2304, num_hidden_layers=40,
        num_attention_heads=36, num_key_value_heads=36, vocab_size=32,
    )  # fmt: skip
    assert made.embedding_multiplier == 12
    assert made.residual_multiplier == pytest.approx(1.4 / 40**0.5)
    assert made.logits_scaling == 9
    assert made.attention_multiplier == 64**-0.5
    assert LANGUAGES["minicpm"].image_scale(made) == 1 / 12


def test_upcycled_copies_equal_the_dense_model_and_rows_stay_apart():
    torch.manual_seed(0)
    dense = transformers.AutoModelForCausalLM.from_config(LANGUAGES["phi"].tiny(64, 2, 64, False)).eval()
    ids = torch.randint(5, 60, (3, 7))
    with torch.no_grad():
        expected = dense(ids).logits
        sparse = upcycle(dense, experts=4, top_k=2, layers=[0])
        # All experts are copies still, and their weights sum to one.
        assert torch.allclose(sparse(ids).logits, expected, atol=1e-5)
        assert torch.equal(upcycle(sparse, experts=4, top_k=2, layers=[0]).model.layers[0].mlp.router,
                           sparse.model.layers[0].mlp.router)  # fmt: skip
        for parameter in sparse.model.layers[0].mlp.experts.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        without = sparse(ids).logits
        assert (without - expected).abs().max() > 1e-3
    assert torch.allclose(sparse(ids).logits, without, atol=1e-5)  # every expert sees every token, or its own only
    layer = sparse.model.layers[0].mlp
    x = torch.randn(2, 5, 64, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad[1].abs().max() == 0
    with pytest.raises(ModelError, match="not upcycled"):
        upcycle(torch.nn.Linear(2, 2), experts=2, top_k=1, layers=[0])
    for wrong in ({"top_k": 5}, {"layers": [2]}, {"layers": []}, {"experts": None}):
        options = LANGUAGES["upcycled"].tiny(64, 2, 64, False)
        options.upcycle = {"experts": 4, "top_k": 2, "layers": [0], **wrong}
        with pytest.raises(ModelError, match="Upcycling with"):
            config(language=options)
    assert isinstance(layer, ExpertMlp)


def test_every_part_has_one_name_and_one_tiny_form():
    for registry in (ENCODERS, PROJECTORS, LANGUAGES):
        assert all(part.name == name for name, part in registry.items())
        assert all(part.__doc__ for part in registry.values())


def test_mambas_fused_kernel_is_never_used(monkeypatch):
    from transformers.models.mamba import modeling_mamba

    called = []
    # What transformers puts there when the package mamba_ssm is installed.
    monkeypatch.setattr(modeling_mamba, "mamba_inner_fn", lambda *_, **__: called.append(1))
    tiny = tiny_composed("siglip", "vss", "mamba")
    tiny.model.train()
    tiny.model(**tiny.batch([1]).inputs)
    assert not called
