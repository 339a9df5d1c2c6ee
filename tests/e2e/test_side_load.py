"""A run whose method keeps side terms also leaves an ordinary PEFT adapter: in another process it computes the same."""

import json

import pytest
import torch
from safetensors.torch import save_file

from coordinator.checkpoint import load_checkpoint
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.testing import tiny_composed, tiny_llava
from strategies.planner import plan
from tests.e2e.checkout import ROOT
from tests.e2e.test_peft_load import _LOAD, _MEASURE, OURS, check, fresh
from tests.federated import make_folder, options, run_in_memory
from umbel.config import RunConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("kind", "name"), [("llava", "fedex-lora"), ("llava", "flora"), ("composed", "fedex-lora")])
def test_peft_computes_what_the_run_evaluated(kind, name, tmp_path):
    tiny = {"composed": tiny_composed, "llava": tiny_llava}[kind]()
    tiny.save(tmp_path / "base")
    make_folder(tmp_path / "data", train=32)
    flat = options(tmp_path, federation__rounds=2, train__learning_rate=0.05, strategy__name=name)
    folder, config = run_in_memory(flat), RunConfig.from_flat(flat)

    # The evaluation model of the run: the checkpoint's factors and side terms on the base.
    tuned = attach_lora(load_base(config.model.name, "none"), config.lora, seed=config.run.seed)
    state = load_checkpoint(folder / "checkpoint", tuned.spec).state
    side = plan(config).side(state.arrays)
    assert len(side) == len(tuned.spec.pairs)
    inputs = dict(tiny.batch([1, 1, 1], seed=3).inputs)
    with torch.no_grad():
        tuned.load(state.adapter)
        without = tuned.model(**inputs).logits
        tuned.load(state.adapter, side)
        expected = tuned.model(**inputs).logits.numpy()
    assert (without.numpy() - expected).__abs__().max() > 1e-4

    save_file({key: value.contiguous() for key, value in inputs.items()}, tmp_path / "inputs.safetensors")
    values = {
        "imported": kind == "composed",
        "root": str(ROOT),
        "base": config.model.name,
        "adapter": str(folder / "adapter"),
        "inputs": str(tmp_path / "inputs.safetensors"),
        "outputs": str(tmp_path / "outputs.safetensors"),
        "ours": sorted(OURS),
    }
    check(kind, tmp_path / "outputs.safetensors", expected, fresh((_LOAD + _MEASURE).format(**values), tmp_path))
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert written["r"] == config.lora.rank + max(term.a.shape[0] for term in side.values())
    assert written["lora_alpha"] / written["r"] == pytest.approx(config.lora.alpha / config.lora.rank)
