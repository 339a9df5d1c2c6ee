import pytest
import torch

from mllm.backends import dequantized_weight, quantized_linear
from mllm.calibrate import Calibration, calibrate, clipped
from mllm.load import load_base
from mllm.parts import linear_sites
from mllm.prepare import preparation
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image, tiny_composed
from umbel.config.model import ModelConfig
from umbel.errors import QuantizationError

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(4):
        random_image(n).save(folder / f"{n}.png")
    return [Example((ImageSource(folder / f"{n}.png"),), "what colour is the shape ?", "red") for n in range(4)]


def outputs_error(weight, stored, x):
    return float((x @ (stored - weight).t()).square().sum())


def test_clipping_makes_the_stored_layer_better_and_never_worse():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 128, generator=generator)
    weight[:, ::37] *= 6  # outliers that spoil the scale of their block
    x = torch.randn(512, 128, generator=generator) * torch.linspace(0.1, 3, 128)
    x[:, ::37] *= 0.01  # and hardly matter
    layer = torch.nn.Linear(128, 32, bias=False)
    errors = []
    for chosen in (weight, clipped(weight, x.t() @ x / 512)):
        layer.weight.data = chosen
        errors.append(outputs_error(weight, dequantized_weight(quantized_linear(layer, "nf4", CPU, FP32)), x))
    assert errors[1] < 0.8 * errors[0]


def test_a_weight_without_outliers_or_of_zeros_stays_whole():
    weight = torch.tensor([[1.0, -1.0] * 32, [0.0] * 64])
    assert torch.equal(clipped(weight, torch.eye(64)), weight)


def test_statistics_are_of_each_modality_and_weighing_changes_them(examples):
    tiny = tiny_composed("siglip")
    before = {name: p.clone() for name, p in tiny.model.named_parameters()}
    token = tiny.model.config.image_token_id
    found = calibrate(tiny.model, Collator(tiny.processor), examples, token)
    site = next(s for s in linear_sites(tiny.model) if s.part == "language" and "mlp" in s.path)
    seen = found.layers[site.path]
    assert set(seen) == {"image", "text"}
    assert seen["image"].tokens == 4 * 16
    assert all(one.gradients > 0 for one in seen.values())
    tower = next(s for s in linear_sites(tiny.model) if s.part == "vision" and not s.exempt)
    assert set(found.layers[tower.path]) == {"image"}
    assert found.layers[tower.path]["image"].gradients > 0
    plain = Calibration(found.layers, balanced=False).weighted(site.path)
    total = (seen["image"].plain + seen["text"].plain) / (seen["image"].tokens + seen["text"].tokens)
    assert torch.allclose(plain, total)
    assert not torch.allclose(found.weighted(site.path), plain, rtol=1e-2)
    assert found.weighted("nowhere") is None
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in tiny.model.named_parameters())
    assert all(p.grad is None for p in tiny.model.parameters())


def test_a_base_is_calibrated_before_it_is_quantized(examples, tmp_path):
    directory = tiny_composed("siglip").save(tmp_path)
    config = ModelConfig(**{"calibration": "balanced", "calibration-examples": 3})
    plain = load_base(str(directory), "nf4")
    made = load_base(str(directory), "nf4", prepare=preparation(config, lambda: examples))
    paths = [m.path for m in made.report.modules]
    differ = [
        not torch.equal(
            dequantized_weight(plain.model.get_submodule(path)), dequantized_weight(made.model.get_submodule(path))
        )
        for path in paths
    ]
    assert any(differ)
    for none in (None, []):
        with pytest.raises(QuantizationError, match="no public examples"):
            load_base(str(directory), "nf4", prepare=preparation(config, lambda none=none: none))
    assert preparation(ModelConfig(), list) is None


def test_no_examples_are_refused():
    tiny = tiny_composed("siglip")
    with pytest.raises(QuantizationError, match="needs public examples"):
        calibrate(tiny.model, Collator(tiny.processor), [], 4)


@pytest.mark.parametrize("parts", [{"vision": "int8", "language": "nf4"}, {"projector": "int8-weight-only"}])
def test_parts_are_stored_as_they_are_named(parts, tmp_path):
    directory = tiny_composed("siglip").save(tmp_path)
    base = load_base(str(directory), "nf4", parts=parts)
    stored = {part: {m.backend for m in base.report.modules if m.part == part} for part in ("language", "vision")}
    assert stored == {"language": {"nf4"}, "vision": {parts.get("vision", "nf4")}}
    assert {m.backend for m in base.report.modules if m.part == "projector"} == (
        {parts["projector"]} if "projector" in parts else set()
    )
    by_backend = {m.backend: m.error for m in base.report.modules}
    assert 0.05 < by_backend["nf4"] < 0.15
    assert all(error < 0.02 for backend, error in by_backend.items() if backend != "nf4")
    tiny = tiny_composed("siglip")
    assert torch.isfinite(base.model(**tiny.batch([1, 0]).inputs).logits).all()
    assert ("as int8" in base.report.summary()) == ("nf4" in base.report.summary() and len(by_backend) > 1)


def test_a_part_without_linears_and_wrong_backends_are_refused(tmp_path):
    directory = tiny_composed("resnet").save(tmp_path)
    with pytest.raises(QuantizationError, match="vision part was to be stored as 'int8'"):
        load_base(str(directory), "nf4", parts={"vision": "int8"})
    with pytest.raises(QuantizationError, match="silently wrong gradients"):
        load_base(str(directory), "nf4", parts={"language": "int8-dynamic"})
