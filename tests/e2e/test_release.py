"""From a finished run to a site: signed, served by a process of its own, fetched, verified, loaded in plain PEFT."""

import json
import os
import subprocess
import sys

import pytest
import torch

from coordinator.release.blobs import Blobs
from coordinator.release.fetch import ReleaseClient
from coordinator.release.publish import publish, release_key
from coordinator.release.registry import Registry, default_url
from coordinator.release.shelf import Shelf, verify_folder
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.testing import tiny_llava
from tests.e2e.real_run import adapter
from tests.federated import make_folder, options, run_in_memory
from tests.federation import make, release_server
from umbel.config import RunConfig
from umbel.signers import pinned_signers

pytestmark = pytest.mark.slow

_LOAD = """
import json, torch
from safetensors.torch import load_file
from peft import PeftModel
from transformers import AutoModelForImageTextToText

torch.set_num_threads(1)
base = AutoModelForImageTextToText.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {adapter!r})
model.eval()
with torch.no_grad():
    logits = model(**load_file({inputs!r})).logits
print(json.dumps([float(logits.double().sum()), float(logits.double().abs().max())]))
"""


def test_a_pulled_adapter_loads_in_plain_peft(tmp_path):
    from safetensors.torch import save_file

    tiny = tiny_llava()
    tiny.save(tmp_path / "base")
    make_folder(tmp_path / "data", train=32)
    flat = options(tmp_path, federation__clients=2, federation__rounds=1, train__learning_rate=0.05)
    run = run_in_memory(flat)
    config = RunConfig.from_flat(flat)

    authority = make(tmp_path)
    hub, site = authority.home("coordinator", "hub"), authority.home("site", "hospital-a")
    store = tmp_path / "releases"
    manifest = publish(run, "wards", release_key(hub), Registry(default_url(store)), Blobs(store / "files"))
    assert manifest.run == run.name
    assert manifest.values == sum(tensor.size for tensor in adapter(run).values())
    signers = set(pinned_signers(site / "identity").values())
    with release_server(hub, store) as (_, address), ReleaseClient(address, site / "client", signers) as client:
        client.pull("wards", Shelf(tmp_path / "adapters", "wards"))
    current = tmp_path / "adapters" / "wards" / "current"
    assert verify_folder(current, signers) == manifest

    inputs = dict(tiny.batch([1, 1], seed=3).inputs)
    save_file({name: value.contiguous() for name, value in inputs.items()}, tmp_path / "inputs.safetensors")
    tuned = attach_lora(load_base(config.model.name, "none"), config.lora, seed=config.run.seed)
    tuned.load(tuned.spec.flatten(adapter(run)))
    with torch.no_grad():
        ours = tuned.model(**inputs).logits.double()
    script = _LOAD.format(base=config.model.name, adapter=str(current), inputs=str(tmp_path / "inputs.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs == pytest.approx([float(ours.sum()), float(ours.abs().max())], rel=1e-4, abs=1e-3)
