"""What a run leaves is an ordinary PEFT adapter: loaded in a process that knows transformers, peft and the model."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.testing import tiny_composed, tiny_llava
from tests.e2e.checkout import ROOT
from tests.e2e.real_run import adapter
from tests.federated import make_folder, options, run_in_memory
from umbel.config import RunConfig

pytestmark = pytest.mark.slow

OURS = {"umbel", "mllm", "privacy", "strategies", "client", "coordinator", "simulations"}

_LOAD = """
import sys
if {imported!r}:
    sys.path.insert(0, {root!r})
    import mllm  # registers the composed model's classes
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {adapter!r})
model.eval()
"""

_MEASURE = """
import json, torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
inputs = load_file({inputs!r})
with torch.no_grad():
    logits = model(**inputs).logits
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with model.disable_adapter():
        plain = model(**inputs).logits
save_file({{"logits": logits, "plain": plain, "made": made}}, {outputs!r})
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}} & set({ours!r}))))
"""


@pytest.fixture(scope="module", params=["composed", "llava"])
def left(request, tmp_path_factory):
    """A finished run on a tiny base: one of our own class, and one as any hub checkpoint is."""
    root = tmp_path_factory.mktemp(request.param)
    tiny = {"composed": tiny_composed, "llava": tiny_llava}[request.param]()
    tiny.save(root / "base")
    make_folder(root / "data", train=32)
    flat = options(root, federation__clients=2, federation__rounds=2, train__learning_rate=0.05)
    folder = run_in_memory(flat)
    return request.param, tiny, RunConfig.from_flat(flat), folder


@pytest.fixture(scope="module")
def ours(left, tmp_path_factory):
    """Inputs in a file, and what our own TunedModel makes of them with the run's vector."""
    _, tiny, config, folder = left
    inputs = dict(tiny.batch([1, 1, 1], seed=3).inputs)
    path = tmp_path_factory.mktemp("inputs") / "inputs.safetensors"
    save_file({name: value.contiguous() for name, value in inputs.items()}, path)
    tuned = attach_lora(load_base(config.model.name, "none"), config.lora, seed=config.run.seed)
    tuned.load(tuned.spec.flatten(adapter(folder)))
    with torch.no_grad():
        return path, tuned.model(**inputs).logits.numpy()


def fresh(script, cwd):
    """Runs ``script`` in a process of its own and returns the last line it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def check(kind, outputs, expected, loaded):
    """The logits are ours, the adapter matters, generation continues, and no more of ours was imported."""
    found = load_file(outputs)
    assert np.abs(found["logits"] - expected).max() < 1e-5
    assert np.abs(found["plain"] - expected).max() > 1e-2
    assert found["made"].shape[0] == 3
    assert found["made"].shape[1] > 0
    assert set(json.loads(loaded)) == ({"mllm", "umbel"} if kind == "composed" else set())


def test_peft_loads_the_adapter_in_a_process_without_us(left, ours, tmp_path):
    kind, _, config, folder = left
    inputs, expected = ours
    outputs = tmp_path / "outputs.safetensors"
    script = _LOAD + _MEASURE
    line = fresh(
        script.format(
            imported=kind == "composed",
            root=str(ROOT),
            base=config.model.name,
            adapter=str(folder / "adapter"),
            inputs=str(inputs),
            outputs=str(outputs),
            ours=sorted(OURS),
        ),
        tmp_path,
    )
    check(kind, outputs, expected, line)


def test_the_model_cards_own_lines_work(left, ours, tmp_path):
    kind, _, config, folder = left
    inputs, expected = ours
    card = (folder / "adapter" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len([line for line in snippet.splitlines() if " = " in line]) == 2
    before = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport mllm\n" if kind == "composed" else "import sys\n"
    outputs = tmp_path / "outputs.safetensors"
    measure = _MEASURE.format(inputs=str(inputs), outputs=str(outputs), ours=sorted(OURS))
    line = fresh(f"{before}BASE = {config.model.name!r}\n{snippet}{measure}", folder)  # beside the folder "adapter"
    check(kind, outputs, expected, line)


def test_the_card_and_the_adapter_name_the_base(left):
    _, _, config, folder = left
    named = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == config.model.name
    assert named["inference_mode"] is True
    assert (named["r"], named["lora_alpha"]) == (config.lora.rank, config.lora.alpha)
    assert f"base_model: {json.dumps(config.model.name)}" in (folder / "adapter" / "README.md").read_text()
