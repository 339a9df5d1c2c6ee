import json

import pytest
import torch

from benchmarks.zoo_memory import STEP, compare, config_of
from mllm.zoo import NATIVE, SYSTEMS, figures
from mllm.zoo.figures import Sizes
from mllm.zoo.memory import Memory, Step, extended_memory, training_memory
from mllm.zoo.texts import text
from mllm.zoo.towers import tower
from umbel.cli.main import main
from umbel.errors import ModelError


@pytest.mark.slow
def test_memory_is_predicted_within_fifteen_percent_for_six_models():
    rows = compare()
    assert len(rows) == 6
    assert {row["quantization"] for row in rows} == {"nf4", "none"}
    for row in rows:
        assert abs(row["ratio"] - 1) <= 0.15, row


def test_memory_follows_what_it_should():
    config = config_of("siglip", "mlp", "llama")
    plain = training_memory(config, STEP)
    assert training_memory(config, Step(8, 1, 128)).activations > 1.7 * plain.activations
    assert training_memory(config, STEP, rank=16).adapter == 2 * plain.adapter
    assert training_memory(config, STEP, checkpointing=True).activations < 0.8 * plain.activations
    whole = training_memory(config, STEP, quantization="none")
    assert whole.base > 2 * plain.base
    assert whole.workspace == 0
    assert plain.total == plain.base + plain.adapter + plain.activations + plain.workspace
    assert Memory(1, 2, 3, 4).total == 10
    with pytest.raises(ModelError, match="choose one of none, nf4"):
        training_memory(config, STEP, quantization="fp3")


@pytest.mark.parametrize("language", ["llama", "mamba"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_line_through_two_depths_is_the_whole_trace(language, checkpointing):
    def config(layers):
        made = config_of("siglip", "mlp", language)
        made.text_config.num_hidden_layers = layers
        return made

    step = Step(2, 1, 16)
    whole = training_memory(config(7), step, checkpointing=checkpointing)
    line = extended_memory(config, 7, step, checkpointing=checkpointing)
    assert (line.base, line.adapter, line.workspace) == (whole.base, whole.adapter, whole.workspace)
    assert line.total == pytest.approx(whole.total, rel=0.005)


def test_figures_that_are_there_are_not_counted_again(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(figures, "SIZES", tmp_path / "sizes.json")
    monkeypatch.setattr(
        figures, "count", lambda system, *, memory: asked.append(system.name) or Sizes(1, 2, 3, 4, 5, 6)
    )
    have = {name: {"parameters": 1, "training_bytes": 2} for name in [*SYSTEMS, *NATIVE]}
    have = {name: row for name, row in have.items() if name not in ("cobra", "mipha", "llava")}
    (tmp_path / "sizes.json").write_text(json.dumps(have | {"mipha": {"parameters": 9, "tokens": 8}}))
    monkeypatch.setattr(figures, "count_native", lambda name: asked.append(name) or Sizes(7, 8, 9))
    figures.record_sizes()
    assert sorted(asked) == ["cobra", "llava", "mipha"]
    made = json.loads((tmp_path / "sizes.json").read_text())
    assert made["mipha"]["training_bytes"] == 6
    assert made["cobra"]["parameters"] == 1
    assert made["llava"] == {"parameters": 7, "quantized_bytes": 8, "adapter_bytes": 9}
    figures.record_sizes()
    assert len(asked) == 3


@pytest.mark.parametrize("name", NATIVE)
def test_a_family_of_transformers_is_counted_from_its_published_configuration(name):
    found, stated = figures.count_native(name), repr(NATIVE[name].parameters)
    digits = len(stated.partition(".")[2])
    assert round(found.parameters / 1e9, digits) == NATIVE[name].parameters
    assert 0.55 < found.quantized_bytes / found.parameters < 1.6
    row = {row["name"]: row for row in figures.rows()}[name]
    assert (row["parameters"], row["quantized_bytes"], row["adapter_bytes"]) == (
        found.parameters,
        found.quantized_bytes,
        found.adapter_bytes,
    )
    assert row["tokens"] == NATIVE[name].tokens


def test_a_family_s_adapter_is_what_a_client_sends():
    """Of LLaVA-1.5: seven linears of 32 layers of Vicuna, rank 8, float32."""
    layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert figures.count_native("llava").adapter_bytes == 4 * 8 * 32 * layer
    with pytest.raises(ModelError, match="Family 'x' is not in the zoo"):
        figures.count_native("x")


@pytest.mark.slow
def test_a_full_system_is_counted_without_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "SIZES", tmp_path / "sizes.json")
    figures.record_sizes(["karmavlm"])
    made = json.loads((tmp_path / "sizes.json").read_text())["karmavlm"]
    assert made["parameters"] == pytest.approx(0.88e9, rel=0.01)  # Qwen1.5-0.5B, SigLIP-SO and two linears
    assert made["tokens"] == 729
    assert 0.3 < made["quantized_bytes"] / made["parameters"] < 1.2
    assert made["checkpointed_bytes"] < made["training_bytes"]
    assert made["training_bytes"] > made["quantized_bytes"]


def test_every_row_says_what_it_knows(monkeypatch, tmp_path):
    shown = {"bunny-v1": {"round_ok": True, "checkpoint_ok": True, "sensitivity": 0.9, "norms": 1e-6, "secure": True,
                          "quantized": True, "lanes": True}}  # fmt: skip
    shown["cobra"] = {**shown["bunny-v1"], "sensitivity": 1.5}
    monkeypatch.setattr(figures, "VERIFIED", tmp_path / "verified.json")
    (tmp_path / "verified.json").write_text(json.dumps(shown))
    rows = {row["name"]: row for row in figures.rows()}
    assert list(rows) == [*SYSTEMS, *NATIVE]
    assert set(rows["bunny-v1"]["verified"].values()) == {True}
    assert rows["cobra"]["verified"]["dp"] is False
    assert set(rows["mipha"]["verified"].values()) == {None}
    assert rows["mm1-3b-moe"]["licence"] == "not published"
    (tmp_path / "verified.json").write_text("{")
    with pytest.raises(ModelError, match="reinstall umbel"):
        figures.rows()


def test_the_command(capsys):
    assert main(["zoo", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(SYSTEMS) + len(NATIVE)
    assert main(["zoo"]) == 0
    assert "bunny-v1" in capsys.readouterr().out


@pytest.mark.parametrize("name", SYSTEMS)
def test_tiny_and_full_have_one_architecture(name):
    full, tiny = SYSTEMS[name].config("full"), SYSTEMS[name].config("tiny")
    assert full.vision_config.model_type == tiny.vision_config.model_type
    assert full.text_config.model_type == tiny.text_config.model_type
    assert full.projector["type"] == tiny.projector["type"]
    assert bool(getattr(full.text_config, "upcycle", None)) == bool(getattr(tiny.text_config, "upcycle", None))
    assert full.tokens_per_image >= tiny.tokens_per_image
    assert SYSTEMS[name].image(tiny).size == tiny.image_size


def test_unknown_names():
    with pytest.raises(ModelError, match="Vision tower 'x' is not in the zoo"):
        tower("x", "full")
    with pytest.raises(ModelError, match="Language model 'x' is not in the zoo"):
        text("x", "full", 32)
    with pytest.raises(ModelError, match="choose full or tiny"):
        SYSTEMS["cobra"].config("huge")
    assert torch.get_default_dtype() == torch.float32
