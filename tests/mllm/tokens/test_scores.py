import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from mllm.language import LANGUAGES
from mllm.language.base import sizes
from mllm.testing import random_image
from mllm.tokens.scores import image_shares

HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
VARIANTS = {
    **{name: (name, {}) for name in LANGUAGES if name != "mamba"},
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama with wide heads": ("llama", {"head_dim": 32}),
    "phi with norms": ("phi", {"qk_layernorm": True}),
    "phi with shared keys": ("phi", {"num_key_value_heads": 1}),
    "phi3 in part": ("phi3", {"rope_parameters": HALF}),
    "stablelm with norms and biases": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "minicpm of another scale": ("minicpm", {"attention_multiplier": 0.7}),
    "mixtral with a window": ("mixtral", {"sliding_window": 6}),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shares_are_the_models_own_attention_to_images(variant, side, attention, composed):
    """Of every layer: its eager weights of the first token after the last image, over their sum on images."""
    language, options = VARIANTS[variant]
    model, tiny = composed(language, **options)
    inputs = tiny.batch([1, 2, 0], padding_side=side).inputs
    images = inputs["input_ids"] == model.config.image_token_id
    model.set_attn_implementation("eager")
    found = []

    def ask(layer, given, kwargs):
        found.append(image_shares(layer, given[0] if given else kwargs["hidden_states"], images, kwargs))

    with torch.no_grad():
        weights = model(**inputs, output_attentions=True, use_cache=False).attentions
        model.set_attn_implementation(attention)
        for layer in model.language_model.model.layers:
            layer.register_forward_pre_hook(ask, with_kwargs=True)
        model(**inputs, use_cache=False)
    assert len(found) == len(weights) == 3
    for own, shares in zip(weights, found, strict=True):
        for row in (0, 1):
            asking = int(images[row].nonzero().max()) + 1
            seen = own[row, :, asking] * images[row]
            expected = (seen / seen.sum(dim=-1, keepdim=True)).mean(dim=0)
            assert torch.allclose(shares[row][images[row]], expected[images[row]], atol=1e-5)
            assert expected[images[row]].std() > 0.005  # a test that tells tokens apart
        assert torch.isfinite(shares).all()


def test_norms_of_heads_are_taken():
    """Qwen3's, which InternVL may bring."""
    config = Qwen3Config(**sizes(64, 2, 40), head_dim=16, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
        ids = torch.randint(3, 40, (1, 12))
    images, found = (torch.arange(12) < 8)[None], []

    def ask(layer, given, kwargs):
        found.append(image_shares(layer, given[0] if given else kwargs["hidden_states"], images, kwargs))

    model.model.layers[1].register_forward_pre_hook(ask, with_kwargs=True)
    with torch.no_grad():
        seen = model(ids, output_attentions=True).attentions[1][0, :, 8] * images
    assert torch.allclose(found[0][0, :8], (seen / seen.sum(dim=-1, keepdim=True)).mean(dim=0)[:8], atol=1e-5)


def test_an_image_at_the_very_end_asks_for_itself(composed):
    model, tiny = composed("phi")
    inputs = tiny.processor(["red <image>"], [[random_image(0)]])
    images = inputs["input_ids"] == model.config.image_token_id
    found = []

    def ask(layer, given, kwargs):
        found.append(image_shares(layer, given[0] if given else kwargs["hidden_states"], images, kwargs))

    model.language_model.model.layers[0].register_forward_pre_hook(ask, with_kwargs=True)
    with torch.no_grad():
        model(**inputs, use_cache=False)
    assert found[0][images].sum() == pytest.approx(1.0, abs=1e-5)
