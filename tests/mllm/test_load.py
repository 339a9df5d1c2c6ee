import copy
import json
import logging
import shutil

import pytest
import safetensors.torch
import torch

from mllm import load, quantize
from mllm.backends import dequantized_weight, is_quantized
from mllm.checkpoint_hash import checkpoint_hash
from mllm.hardware import native_bfloat16, pick_device
from mllm.inspect import part_sizes
from mllm.load import load_base
from mllm.quantize import BACKENDS
from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from umbel.errors import ModelError, QuantizationError

MAKERS = {
    "composed": tiny_composed,
    "siglip-shuffle-qwen2": lambda: tiny_composed("siglip", "pixel-shuffle", "qwen2", tie=True),
    "wide": lambda: tiny_composed(width=128),
    "llava": tiny_llava,
    "smolvlm": lambda: tiny_smolvlm(tiles=True),
    "qwen25vl": tiny_qwen25vl,
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


def dequantized(tiny, base):
    twin = copy.deepcopy(tiny.model)
    for module in base.report.modules:
        twin.get_submodule(module.path).weight.data = dequantized_weight(base.model.get_submodule(module.path))
    return twin


@pytest.mark.parametrize("quantization", BACKENDS)
@pytest.mark.parametrize("name", MAKERS)
def test_logits_equal_the_dequantized_models(name, quantization, saved):
    tiny, directory = saved(name)
    base = load_base(str(directory), quantization)
    inputs = tiny.batch([1, 2, 0]).inputs
    with torch.no_grad():
        logits, expected = base.model(**inputs).logits, dequantized(tiny, base)(**inputs).logits
        changed = (expected - tiny.model(**inputs).logits).abs().max()
    assert (logits - expected).abs().max() <= (0 if quantization.startswith("nf4") or quantization == "none" else 2e-6)
    assert (changed > 1e-5) == (quantization != "none")
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("name", MAKERS)
def test_the_report_tells_what_is_stored_how(name, saved):
    tiny, directory = saved(name)
    report = load_base(str(directory), "nf4").report
    linears = {path for path, module in tiny.model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {module.path for module in report.modules}
    exempt = {module.path: module.reason for module in report.exempt}
    assert quantized
    assert quantized | {path for path in exempt if path in linears} == linears
    assert not quantized & exempt.keys()
    # 4 bits a value instead of 32, and a float32 scale for 64 values.
    assert all(m.after < m.before / 6 + 100 for m in report.modules)
    assert any(reason == "embedding" for reason in exempt.values())
    assert not any("lm_head" in path or "projector" in path or "merger" in path for path in quantized)
    assert report.bytes_after < report.bytes_before
    assert json.loads(json.dumps(report.to_dict()))["backend"] == "nf4"
    assert f"{len(quantized)} linear layers as nf4" in report.summary()


def test_vision_and_language_are_quantized_or_kept(saved):
    _, directory = saved("llava")
    both = load_base(str(directory), "int8").report
    assert {m.part for m in both.modules} == {"vision", "language"}
    kept = load_base(str(directory), "int8", keep=("vision",)).report
    assert {m.part for m in kept.modules} == {"language"}
    assert "vision is kept" in {m.reason for m in kept.exempt}
    with pytest.raises(QuantizationError, match="no linear layer"):
        load_base(str(directory), "int8", keep=("vision", "language"))
    with pytest.raises(ModelError, match="choose from language"):
        load_base(str(directory), "int8", keep=("model.vision_tower",))


def test_auto_picks_by_memory_and_device(monkeypatch, saved):
    _, directory = saved("composed")
    assert load_base(str(directory), device="cpu").report.backend == "int8-weight-only"
    monkeypatch.setattr(load, "total_memory", lambda device: 1000)
    report = load_base(str(directory), device="cpu").report
    assert (report.asked, report.backend, report.compute) == ("auto", "nf4", "float32")


def test_bfloat16_weights_and_compute(monkeypatch, saved, tmp_path):
    tiny, _ = saved("composed")
    half = copy.deepcopy(tiny.model).bfloat16()
    half.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    base = load_base(str(tmp_path), "none")
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    assert base.report.bytes_after == 2 * base.report.bytes_before
    with torch.no_grad():
        assert torch.isfinite(base.model(**tiny.batch([1]).inputs).logits).all()
    monkeypatch.setattr(load, "native_bfloat16", lambda device: False)
    with pytest.raises(QuantizationError, match="use float32"):
        load_base(str(tmp_path), "nf4", compute="bfloat16", device="cpu")
    monkeypatch.setattr(load, "native_bfloat16", lambda device: True)
    base = load_base(str(tmp_path), "nf4", compute="bfloat16", device="cpu")
    with torch.no_grad():
        logits = base.model(**tiny.batch([1, 2]).inputs).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_native_bfloat16_is_read_from_cpu_features(tmp_path):
    cpu = torch.device("cpu")
    info = tmp_path / "cpuinfo"
    for text, expected in [
        ("flags\t\t: fpu avx2 avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t: bf16\n", False),
        ("", False),
    ]:
        info.write_text(text)
        assert native_bfloat16(cpu, info) is expected
    assert native_bfloat16(cpu, tmp_path / "missing") is False


def test_part_sizes_count_every_value(saved):
    tiny, directory = saved("siglip-shuffle-qwen2")
    expected = sum(p.numel() for p in tiny.model.parameters())
    for quantization in BACKENDS:
        base = load_base(str(directory), quantization)
        sizes = {size.part: size for size in part_sizes(base.model)}
        assert sum(size.values for size in sizes.values()) == expected
        assert sum(size.bytes for size in sizes.values()) == base.report.bytes_after
        assert sizes["language"].values > 0
        assert sizes["vision"].trainable == 0


def test_the_hash_covers_weights_and_configuration_only(saved, tmp_path):
    _, directory = saved("composed")
    base = load_base(str(directory), "none")
    assert base.hash == checkpoint_hash(directory)
    copied = tmp_path / "copy"
    shutil.copytree(directory, copied)
    (copied / "README.md").write_text("hello")
    assert checkpoint_hash(copied) == base.hash
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"note": 1}))
    changed = checkpoint_hash(copied)
    assert changed != base.hash
    weights = safetensors.torch.load_file(copied / "model.safetensors")
    weights["projector.0.bias"][0] += 1
    safetensors.torch.save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert checkpoint_hash(copied) not in (base.hash, changed)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ("int8-dynamic", "silently wrong gradients"),
        ("int4-weight-only", "no gradient"),
        ("hqq", "HQQ"),
        ("x", "unknown"),
    ],
)
def test_backends_with_wrong_gradients_are_refused(quantization, words, saved):
    with pytest.raises(QuantizationError, match=words):
        load_base(str(saved("composed")[1]), quantization)


def test_a_layer_that_was_not_quantized_is_noticed(monkeypatch, saved):
    monkeypatch.setattr(quantize, "quantized_linear", lambda linear, *_: linear)
    with pytest.raises(QuantizationError, match="is not quantized though 'nf4'"):
        load_base(str(saved("composed")[1]), "nf4")


def test_a_wrong_gradient_is_noticed(monkeypatch, saved):
    real = quantize.quantized_linear

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, gradient):
            return torch.sign(gradient)

    def broken(linear, *options):
        made = real(linear, *options)
        forward = made.forward
        made.forward = lambda x: forward(Rounded.apply(x))
        return made

    monkeypatch.setattr(quantize, "quantized_linear", broken)
    with pytest.raises(QuantizationError, match="gradient through"):
        load_base(str(saved("composed")[1]), "int8-weight-only")


def test_quantized_weights_are_really_small(saved):
    base = load_base(str(saved("composed")[1]), "nf4-double")
    for module in base.report.modules:
        layer = base.model.get_submodule(module.path)
        assert is_quantized(layer)
        assert layer.weight.numel() == layer.in_features * layer.out_features // 2


class TestRefusals:
    def broken(self, saved, tmp_path):
        target = tmp_path / "base"
        shutil.copytree(saved("composed")[1], target)
        return target

    def test_names(self, tmp_path):
        for name in ("no such model", "nowhere", "/no/where/at/all"):
            with pytest.raises(ModelError, match=r"neither demo nor in the zoo .* nor a directory nor a hub id"):
                load_base(name)
        with pytest.raises(ModelError, match="neither downloaded nor found"):
            load_base("owner/model-that-is-not-cached")

    def test_without_weights(self, saved, tmp_path):
        target = self.broken(saved, tmp_path)
        (target / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="no safetensors weights: expected"):
            load_base(str(target))
        (target / "pytorch_model.bin").write_bytes(b"x")
        with pytest.raises(ModelError, match="pickled weights are never loaded"):
            load_base(str(target))

    def test_without_configuration(self, tmp_path):
        with pytest.raises(ModelError, match=r"no config\.json"):
            load_base(str(tmp_path))

    def test_damaged(self, saved, tmp_path):
        target = self.broken(saved, tmp_path)
        (target / "model.safetensors").write_bytes(b"garbage")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_base(str(target))
        (target / "config.json").write_text("{")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_base(str(target))

    def test_a_missing_weight_is_not_made_up(self, saved, tmp_path):
        target = self.broken(saved, tmp_path)
        weights = safetensors.torch.load_file(target / "model.safetensors")
        del weights["projector.0.weight"]
        safetensors.torch.save_file(weights, target / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 of the model's weights \(first projector.0.weight\)"):
            load_base(str(target))

    def test_a_head_that_nobody_uses_may_be_missing(self, saved, tmp_path):
        tiny, directory = saved("llava")
        target = tmp_path / "base"
        shutil.copytree(directory, target)
        weights = safetensors.torch.load_file(target / "model.safetensors")
        kept = {key: value for key, value in weights.items() if ".head." not in key}
        assert len(kept) < len(weights)
        safetensors.torch.save_file(kept, target / "model.safetensors", {"format": "pt"})
        base, inputs = load_base(str(target), "none"), tiny.batch([1]).inputs
        with torch.no_grad():
            assert torch.equal(base.model(**inputs).logits, tiny.model(**inputs).logits)

    def test_a_model_without_vision(self, saved, tmp_path):
        saved("composed")[0].model.language_model.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="cannot be loaded as a vision-language model"):
            load_base(str(tmp_path))

    def test_quantized_already(self, saved, tmp_path):
        target = self.broken(saved, tmp_path)
        config = json.loads((target / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (target / "config.json").write_text(json.dumps(config))
        with pytest.raises(QuantizationError, match="quantized already"):
            load_base(str(target))

    def test_without_a_processor(self, saved, tmp_path):
        target = self.broken(saved, tmp_path)
        (target / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match="processor"):
            load_base(str(target), "none")

    def test_devices(self):
        with pytest.raises(ModelError, match="use auto, cpu or cuda"):
            pick_device("gpu")
        with pytest.raises(ModelError, match="use auto, cpu or cuda"):
            pick_device("meta")
        with pytest.raises(ModelError, match="is not there"):
            pick_device("cuda:99")
        with pytest.raises(ModelError, match="use auto, float32 or bfloat16"):
            load_base("nowhere", "none", compute="float64")


@pytest.mark.parametrize("make", [tiny_composed, tiny_llava])
def test_tensors_without_a_place_are_named(make, tmp_path, caplog):
    """Published checkpoints carry heads of other tasks: the model is whole without them, but nobody should wonder."""
    directory = make().save(tmp_path)
    (file,) = directory.glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    with caplog.at_level("WARNING", logger="flwr.umbel"):
        logging.getLogger("flwr.umbel").addHandler(caplog.handler)
        load_base(str(directory), "none")
        assert "no place for" not in caplog.text
        tensors["other.task.head.weight"] = torch.zeros(2, 2)
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
        load_base(str(directory), "none")
    logging.getLogger("flwr.umbel").removeHandler(caplog.handler)
    assert "holds 1 tensors that the model has no place for" in caplog.text
    assert "other.task.head.weight" in caplog.text
