import copy
import hashlib
import json
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file

from mllm.backends import dequantized_weight
from mllm.load import load_base
from mllm.lora import attach_lora, target_sites
from mllm.loss import per_example_loss
from mllm.quantize import BACKENDS
from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from umbel.config.model import LoraConfig
from umbel.errors import AdapterError, ModelError

ALL = "language,vision,projector"
MAKERS = {
    "siglip-shuffle-qwen2": lambda: tiny_composed("siglip", "pixel-shuffle", "qwen2"),
    "clip": lambda: tiny_composed("clip", tie=True),
    "vit": lambda: tiny_composed("vit"),
    "llava": tiny_llava,
    "smolvlm": tiny_smolvlm,
    "qwen25vl": tiny_qwen25vl,
    "composed": tiny_composed,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            tiny = MAKERS[name]()
            made[name] = (tiny, tiny.save(tmp_path_factory.mktemp(name)))
        return made[name]

    return get


def noisy(tuned, seed=0, scale=0.05):
    vector = tuned.vector()
    return vector + np.random.default_rng(seed).normal(size=vector.shape).astype(np.float32) * np.float32(scale)


def gradients(tuned, batch):
    tuned.model.zero_grad()
    logits = tuned.model(**batch.inputs).logits
    per_example_loss(logits, batch.labels).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in tuned.parameters.items()}


@pytest.mark.parametrize("quantization", BACKENDS)
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_every_target_and_equal_the_dequantized_models(name, quantization, saved):
    tiny, directory = saved(name)
    config = LoraConfig(rank=4, targets="language,projector" if name == "composed" else ALL)
    base = load_base(str(directory), quantization)
    twin = load_base(str(directory), "none")
    twin.model = copy.deepcopy(tiny.model).requires_grad_(False)
    for module in base.report.modules:
        weight = dequantized_weight(base.model.get_submodule(module.path))
        twin.model.get_submodule(module.path).weight.data = weight
    tuned, reference = attach_lora(base, config, seed=1), attach_lora(twin, config, seed=1)
    assert tuned.spec.hash == reference.spec.hash
    vector = noisy(tuned)
    for model in (tuned, reference):
        model.load(vector)
    batch = tiny.batch([1, 2, 0])
    (logits, mine), (expected, theirs) = gradients(tuned, batch), gradients(reference, batch)
    assert all(gradient.abs().sum() > 0 for gradient in mine.values())
    exact = quantization in ("none", "nf4", "nf4-double")
    assert (logits - expected).abs().max() <= (0 if exact else 3e-6)
    flat, other = (torch.cat([g.flatten() for g in gs.values()]) for gs in (mine, theirs))
    assert (flat - other).norm() / other.norm() <= (0 if exact else 3e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_only_named_parts_are_adapted(name, saved):
    _, directory = saved(name)
    base = load_base(str(directory), "none")
    everything = {s.path for s in target_sites(base.model, LoraConfig(targets="language,projector"))}
    language = {s.path for s in target_sites(base.model, LoraConfig())}
    projector = {s.path for s in target_sites(base.model, LoraConfig(targets="projector"))}
    assert language | projector == everything
    assert not language & projector
    assert all("language_model" in path or "text_model" in path for path in language)
    assert not any("vision" in path or "visual" in path or "lm_head" in path for path in language)
    tuned = attach_lora(base, LoraConfig(rank=2), seed=0)
    trainable = {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * len(language) == len(tuned.spec.tensors)
    assert {pair.module.removeprefix("base_model.model.") for pair in tuned.spec.pairs} == language
    assert {p.dtype for p in tuned.parameters.values()} == {torch.float32}


def test_a_name_does_not_catch_other_towers(saved):
    _, directory = saved("llava")
    base = load_base(str(directory), "none")
    tuned = attach_lora(base, LoraConfig(modules="q_proj, v_proj"), seed=0)
    paths = [pair.module for pair in tuned.spec.pairs]
    assert len(paths) == 4
    assert all(".language_model." in path and path.endswith(("q_proj", "v_proj")) for path in paths)


def test_layers_above_the_feature_layer_are_left_alone(tmp_path):
    tiny = tiny_composed("clip")
    tiny.model.config.vision_feature_layer = -2
    base = load_base(str(tiny.save(tmp_path)), "none")
    paths = [s.path for s in target_sites(base.model, LoraConfig(targets="vision"))]
    assert any(".layers.0." in path for path in paths)
    assert not any(".layers.1." in path for path in paths)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_generator(saved):
    _, directory = saved("composed")
    base = load_base(str(directory), "none")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = attach_lora(base, LoraConfig(), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    code = (
        "import sys, torch, hashlib; from mllm.load import load_base; from mllm.lora import attach_lora;"
        "from umbel.config.model import LoraConfig; torch.manual_seed(77);"
        "t = attach_lora(load_base(sys.argv[1], 'nf4'), LoraConfig(), seed=3);"
        "print(hashlib.sha256(t.vector().tobytes()).hexdigest(), t.spec.hash)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hashlib.sha256(one.vector().tobytes()).hexdigest(), one.spec.hash]
    other = attach_lora(load_base(str(directory), "none"), LoraConfig(), seed=4)
    assert not np.array_equal(other.vector(), one.vector())


def test_initial_factors(saved):
    tiny, directory = saved("composed")
    base = load_base(str(directory), "none")
    inputs = tiny.batch([1, 0]).inputs
    with torch.no_grad():
        before = base.model(**inputs).logits
        tuned = attach_lora(base, LoraConfig(rank=64), seed=0)
        assert torch.equal(tuned.model(**inputs).logits, before)
    views = tuned.spec.views(tuned.vector())
    for pair in tuned.spec.pairs:
        a, bound = views[pair.a.name], 1 / np.sqrt(pair.a.shape[1])
        assert np.count_nonzero(views[pair.b.name]) == 0
        assert bound * 0.95 < np.abs(a).max() <= bound
        # A uniform distribution has a standard deviation of bound / sqrt(3); 5 standard errors.
        assert abs(a.std() / (bound / np.sqrt(3)) - 1) < 5 / np.sqrt(2 * a.size)
    assert not np.array_equal(attach_lora(tuned.detach(), LoraConfig(rank=64), seed=1).vector(), tuned.spec.zeros())


def test_vector_and_load_are_inverse(saved):
    tuned = attach_lora(load_base(str(saved("composed")[1]), "nf4"), LoraConfig(rank=3, rslora=True), seed=0)
    vector = noisy(tuned)
    vector.flags.writeable = False
    identities = [id(p) for p in tuned.model.parameters()]
    tuned.load(vector)
    assert np.array_equal(tuned.vector(), vector)
    assert identities == [id(p) for p in tuned.model.parameters()]
    for name, view in tuned.spec.views(vector).items():
        assert np.array_equal(tuned.parameters[name].detach().numpy(), view)
    taken = tuned.vector()
    taken[:] = 0
    assert np.array_equal(tuned.vector(), vector)
    with pytest.raises(AdapterError):
        tuned.load(vector[:-1])
    with pytest.raises(AdapterError):
        tuned.load(vector.astype(np.float64))
    assert tuned.spec.lora.scaling == pytest.approx(16 / np.sqrt(3))


@pytest.mark.filterwarnings("ignore:.*get_apply_tensor_subclass")
@pytest.mark.parametrize("name", ["composed", "llava", "qwen25vl"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "int8-weight-only"])
def test_plain_peft_loads_what_was_saved(name, quantization, saved, tmp_path):
    tiny, directory = saved(name)
    tuned = attach_lora(load_base(str(directory), quantization), LoraConfig(rank=4, rslora=True), seed=0)
    vector = noisy(tuned)
    tuned.save(tmp_path, vector)
    assert not np.array_equal(tuned.vector(), vector)
    tuned.load(vector)
    inputs = tiny.batch([1, 2]).inputs
    other = peft.PeftModel.from_pretrained(load_base(str(directory), quantization).model, str(tmp_path))
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, tuned.model(**inputs).logits)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert set(stored) == {tensor.name for tensor in tuned.spec}
    assert set(stored) == set(peft.get_peft_model_state_dict(tuned.model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(directory.resolve())
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])


def test_what_was_saved_is_the_same_bytes_again(saved, tmp_path):
    tuned = attach_lora(load_base(str(saved("composed")[1]), "none"), LoraConfig(), seed=0)
    for folder in ("a", "b"):
        tuned.save(tmp_path / folder)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    broken = tuned.vector()
    broken[0] = np.nan
    with pytest.raises(AdapterError, match="not finite"):
        tuned.save(tmp_path / "c", broken)
    assert not (tmp_path / "c").exists()


def test_one_warm_base_carries_one_adapter_after_another(saved):
    tiny, directory = saved("composed")
    base = load_base(str(directory), "nf4")
    inputs = tiny.batch([1]).inputs
    with torch.no_grad():
        before = base.model(**inputs).logits
        tuned = attach_lora(base, LoraConfig(rank=2), seed=0)
        tuned.load(noisy(tuned))
        assert not torch.equal(tuned.model(**inputs).logits, before)
        with pytest.raises(ModelError, match="detach it"):
            attach_lora(base, LoraConfig(), seed=0)
        assert torch.equal(tuned.detach().model(**inputs).logits, before)
    again = attach_lora(base, LoraConfig(rank=5, targets="language,projector"), seed=0)
    assert again.spec.lora.rank == 5
    assert not any(p.requires_grad for n, p in again.model.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("name", ["siglip-shuffle-qwen2", "llava", "smolvlm", "qwen25vl"])
def test_gradient_checkpointing_gives_the_same_gradients(name, saved):
    tiny, directory = saved(name)
    batch = tiny.batch([1, 2])
    results = []
    for checkpointing in (False, True):
        tuned = attach_lora(load_base(str(directory), "nf4"), LoraConfig(targets=ALL), seed=0)
        tuned.load(noisy(tuned))
        tuned.model.train()
        if checkpointing:
            tuned.enable_gradient_checkpointing()
        results.append(gradients(tuned, batch)[1])
    for key, value in results[0].items():
        assert torch.allclose(value, results[1][key], atol=1e-6), key


def test_generation_through_the_tuned_model(saved):
    for name in ("composed", "qwen25vl", "smolvlm"):
        tiny, directory = saved(name)
        tuned = attach_lora(load_base(str(directory), "none"), LoraConfig(), seed=0)
        tuned.load(noisy(tuned, scale=0.5))
        inputs = tiny.batch([1, 2], padding_side="left").inputs
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        cached = tuned.model.generate(**inputs, **options)
        assert torch.equal(cached, tuned.model.generate(**inputs, **options, use_cache=False))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("composed", {"targets": "audio"}, "choose from language, vision, projector"),
        ("composed", {"targets": " , "}, "names no part"),
        ("composed", {"targets": "vision"}, "choose from language, projector"),
        ("composed", {"modules": "q_proj,query"}, "down_proj, gate_proj"),
        ("composed", {"modules": "lm_head"}, "lm_head"),
        ("composed", {"modules": " , "}, "choose from"),
    ],
)
def test_targets_that_match_nothing(name, options, words, saved):
    base = load_base(str(saved(name)[1]), "none")
    with pytest.raises(ModelError, match=words):
        attach_lora(base, LoraConfig(**options), seed=0)
    assert attach_lora(base, LoraConfig(), seed=0).spec.size > 0
