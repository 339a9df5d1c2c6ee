"""A federation for tests: an authority, a coordinator, sites; and a released run. Real keys, real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from coordinator.model_card import write_model_card
from deploy.provision import Authority
from deploy.provision import certificates as build
from deploy.provision.keys import authority_key
from tests.coordinator.sample_run import write_run

ROOT = Path(__file__).resolve().parents[1]


def make(root: Path) -> Authority:
    """The authority of ``demo`` with the coordinator ``hub`` and the site ``hospital-a``."""
    authority, _ = Authority.init(root / "pki", "demo")
    authority.enrol("coordinator", "hub")
    authority.enrol("site", "hospital-a")
    return authority


def reissue(authority: Authority, member: str, use: str, folder: Path, **changes: object) -> None:
    """Replaces a certificate in ``folder`` by one that differs as told, signed by the authority's real key."""
    index = authority.index()
    key = authority_key(folder / "key.pem")
    values: dict[str, object] = {
        "name": member,
        "use": use,
        "federation": index.federation,
        "server": use in ("agent", "release"),
        "hosts": ["localhost", "127.0.0.1"],
        "lifetime": timedelta(days=1),
    }
    signer = authority_key(authority.folder / "ca.key")
    made = build.issue(authority.ca, signer, key.public_key(), **{**values, **changes})  # type: ignore[arg-type]
    (folder / "cert.pem").write_bytes(build.pem(made))


def finished_run(root: Path, *, values: int = 600, seed: int = 0) -> Path:
    """A finished run with a small adapter of ``values`` float32."""
    folder = write_run(root)
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    tensor = np.random.default_rng(seed).standard_normal(values).astype(np.float32)
    save_file({"base_model.model.q.lora_A.weight": tensor}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    write_model_card(folder)
    return folder


@contextmanager
def release_server(
    member: Path, store: Path, *options: str, port: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``umbel release serve`` in a process of its own; yields it and its address."""
    command = [sys.executable, "-m", "umbel", "release", "serve", "--member", str(member), "--store", str(store)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--listen", f"localhost:{port}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=store.parent,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "Serving releases on" not in line:
            raise AssertionError(f"{line}{process.communicate(timeout=30)}")
        yield process, f"localhost:{line.split(';')[0].rpartition(':')[2]}"
    finally:
        process.terminate()
        process.communicate(timeout=30)
