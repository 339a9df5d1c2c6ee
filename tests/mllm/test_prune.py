import pytest
import torch

from mllm.load import load_base
from mllm.prune import prune_heads, prune_magnitude
from mllm.testing import tiny_composed
from umbel.errors import ModelError


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_smallest_weights_become_zero(share):
    model = tiny_composed("siglip").model
    linear = model.language_model.model.layers[0].mlp.up_proj
    before = linear.weight.detach().clone()
    report = prune_magnitude(model, share)
    gone = linear.weight == 0
    assert abs(report.zeroed / report.looked_at - share) < 0.01
    assert before[gone].abs().max() <= before[~gone].abs().min()
    assert torch.equal(linear.weight[~gone], before[~gone])
    assert model.projector.proj[0].weight.ne(0).all() if hasattr(model.projector, "proj") else True


OUTPUTS = {"llama": "o_proj", "qwen2": "o_proj", "phi": "dense", "gemma": "o_proj"}


@pytest.mark.parametrize("language", OUTPUTS)
def test_heads_are_cut_out_and_the_rest_computes_as_if_they_were_masked(language):
    tiny, twin = (tiny_composed("siglip", "mlp", language) for _ in range(2))
    attention = twin.model.language_model.model.layers[0].self_attn
    groups = attention.k_proj.out_features // attention.head_dim
    report = prune_heads(tiny.model, 0.5)
    assert report.heads == report.all_heads // 2
    for layer, pruned in zip(
        twin.model.language_model.model.layers, tiny.model.language_model.model.layers, strict=True
    ):
        name = OUTPUTS[language]
        whole, cut = getattr(layer.self_attn, name), getattr(pruned.self_attn, name)
        weight = whole.weight.data
        blocks = weight.view(weight.shape[0], groups, -1)
        norms = blocks.square().sum(dim=(0, 2))
        blocks[:, norms.argsort()[: groups // 2]] = 0
        assert cut.in_features == whole.in_features // 2
        assert pruned.self_attn.q_proj.out_features == layer.self_attn.q_proj.out_features // 2
    batch = tiny.batch([1, 0, 2])
    with torch.no_grad():
        assert torch.allclose(tiny.model(**batch.inputs).logits, twin.model(**batch.inputs).logits, atol=1e-5)
        assert tiny.model.generate(**batch.inputs, max_new_tokens=2).shape[1] > batch.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("quantization", ["nf4", "int8", "int8-weight-only"])
def test_what_is_pruned_stays_zero_when_it_is_quantized(quantization, tmp_path):
    from mllm.backends import dequantized_weight

    directory = tiny_composed("siglip").save(tmp_path)
    base = load_base(str(directory), quantization, prepare=lambda model, _: prune_magnitude(model, 0.5) and None)
    for module in base.report.modules:
        weight = dequantized_weight(base.model.get_submodule(module.path))
        assert (weight == 0).float().mean() >= 0.49


@pytest.mark.parametrize("language", ["phi3", "stablelm", "mamba"])
def test_models_without_such_heads_are_refused(language):
    with pytest.raises(ModelError, match=r"model\.prune=magnitude"):
        prune_heads(tiny_composed("siglip", "mlp", language).model, 0.5)


def test_impossible_shares_and_attention_are_refused():
    model = tiny_composed("siglip").model
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ModelError, match="above 0 and below 1"):
            prune_magnitude(model, share)
    with pytest.raises(ModelError, match="removes no group"):
        prune_heads(model, 0.01)
    for layer in model.language_model.model.layers:
        del layer.self_attn.o_proj
    with pytest.raises(ModelError, match=r"model\.prune=magnitude"):
        prune_heads(model, 0.5)
