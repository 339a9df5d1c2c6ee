"""Whole runs of every way to tune, and of what may be done to a base, on a tiny model."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from coordinator.remeasure import remeasure
from coordinator.supported import check_privacy, check_supported
from tests.federated import options, run_in_memory
from umbel.config import RunConfig
from umbel.errors import ConfigError, FederationError, ModelError

PRIVATE = {"privacy__unit": "example", "privacy__epsilon": 20.0, "privacy__delta": 1e-2}
SECURE = {"secagg__enabled": True, "secagg__clip": 20.0}
RUNS = {
    "dora": {"lora__method": "dora", **SECURE},
    "ia3": {"lora__method": "ia3", **SECURE, **PRIVATE},
    "adapter": {"lora__method": "adapter", **SECURE, **PRIVATE},
    "prompt": {"lora__method": "prompt", "lora__tokens": 2, **SECURE, **PRIVATE},
    "prefix": {"lora__method": "prefix", "lora__tokens": 2, **PRIVATE},
    "distil": {"train__distill": "global", **SECURE, **PRIVATE},
    "int4": {"lora__quantization_aware": "int4", **SECURE, **PRIVATE},
    "tokens": {"model__tokens": "tome", "model__token_share": 0.5, "model__feature_cache": "memory", **PRIVATE},
    "fastv": {"model__tokens": "fastv", "model__token_share": 0.5, "model__token_layer": 1, **PRIVATE},
    "pruned": {
        "model__prune": "heads",
        "model__prune_share": 0.5,
        "model__quantization": "nf4",
        "model__quantization_parts": "projector:int8",
        **PRIVATE,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_and_its_adapter_measures_the_same_again(name, tiny_root, tmp_path):
    changes = {"federation__rounds": 2, "run__directory": str(tmp_path), "run__id": name, **RUNS[name]}
    flat = options(tiny_root, **changes)
    config = RunConfig.from_flat(flat)
    check_supported(config)
    check_privacy(config)
    folder = run_in_memory(flat)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["start", "round", "round", "end"]
    assert [line["survivors"] for line in lines if line["kind"] == "round"] == [4, 4]
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(np.isfinite(value).all() for value in tensors.values())
    again = remeasure(folder, 0, lambda _: None)
    told = lines[-1]["evaluation"]["eval"]
    assert again["eval"].accuracy == pytest.approx(told["accuracy"])
    assert again["eval"].loss == pytest.approx(told["loss"], rel=1e-4)


def test_impossible_runs_are_refused_before_anybody_is_asked(tiny_root):
    for changes in ({"lora__method": "dora", **PRIVATE}, {"lora__method": "ia3", "strategy__name": "ffa-lora"}):
        with pytest.raises(ConfigError):
            run_in_memory(options(tiny_root, run__id="never", **changes))
    assert not (tiny_root / "runs" / "never").exists()


def test_a_teacher_must_read_the_same_words(tiny_root, tmp_path):
    from mllm.testing import tiny_composed
    from mllm.warm import warm_teacher

    same = tiny_composed("vit", layers=1, seed=3).save(tmp_path / "teacher")
    flat = options(tiny_root, train__distill="teacher", train__teacher=str(same))
    flat |= {"run.directory": str(tmp_path), "run.id": "taught", "federation.rounds": 1}
    folder = run_in_memory(flat)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    model, collator = warm_teacher(RunConfig.from_flat(flat))
    assert model.config.vision_config.model_type == "vit"
    assert collator.tokenizer.vocab_size > 0


@pytest.mark.parametrize(("kind", "sentence"), [("none", "nowhere"), ("words", "tokenizer"), ("head", "vocabulary")])
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_paid_for(kind, sentence, tiny_root, tmp_path):
    from mllm.testing import tiny_composed

    teacher = tmp_path / "nowhere"
    if kind == "words":
        tiny = tiny_composed("vit", layers=1, seed=3)
        tiny.processor.tokenizer.add_tokens(["unheard"])
        tiny.save(teacher)
    if kind == "head":
        tiny = tiny_composed("vit", layers=1, seed=3)
        tiny.model.language_model.resize_token_embeddings(tiny.model.config.text_config.vocab_size + 8)
        tiny.save(teacher)
    flat = options(tiny_root, train__distill="teacher", train__teacher=str(teacher), **PRIVATE)
    flat |= {"run.directory": str(tmp_path / "runs"), "run.id": kind, "federation.rounds": 1}
    with pytest.raises(FederationError, match=sentence):
        run_in_memory(flat)
    assert not list((tmp_path / "runs").rglob("ledger.sqlite"))


@pytest.mark.parametrize("name", ["tokens", "fastv", "pruned", "int4"])
def test_an_exported_adapter_answers_as_its_run_does(name, tiny_root, tmp_path):
    """What was done to the base travels with the adapter, and the model card says so."""
    from coordinator.export import export_adapter
    from mllm.altered import FILE
    from mllm.inference import load_adapter_folder
    from mllm.warm import warm_model, warm_task

    changes = RUNS[name] | {"privacy__unit": "none", "model__feature_cache": "none"}
    changes |= {"model__quantization": "none", "model__quantization_parts": "same"}
    flat = options(tiny_root, federation__rounds=1, run__directory=str(tmp_path / "runs"), run__id=name, **changes)
    folder = run_in_memory(flat)
    config = RunConfig.from_flat(flat)
    exported = export_adapter(folder, tmp_path / "exported")
    altered = name != "int4"
    assert (exported / FILE).is_file() == altered
    assert ("was altered for this run" in (exported / "README.md").read_text()) == altered
    subject = load_adapter_folder(exported, str(tiny_root / "base"), "none")
    warm, task = warm_model(config), warm_task(config)
    warm.tuned.load(warm.tuned.spec.flatten(load_file(folder / "adapter" / "adapter_model.safetensors")))
    examples = [task.evaluation["eval"][index] for index in range(6)]
    batch, own = warm.collator(examples), subject.collator(examples)
    with torch.no_grad():
        ours, theirs = warm.tuned.model(**batch.inputs).logits, subject.model(**own.inputs).logits
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1e-4
    if altered:
        (exported / FILE).write_text("{}")
        with pytest.raises(ModelError, match="export the adapter again"):
            load_adapter_folder(exported, str(tiny_root / "base"), "none")
