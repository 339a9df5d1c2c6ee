"""What tests of whole runs share: a tiny base, a small folder of images, and a run over the in-memory grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}


def make_folder(path: Path, train: int = 48, held_out: int = 12) -> Path:
    """A data folder: one coloured image an example, and a question about it."""
    path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("eval", held_out)):
        lines = []
        for number in range(count):
            name = list(COLOURS)[number % 3]
            pixels = generator.normal(0, 12, (32, 32, 3)) + COLOURS[name]
            file = f"{split}{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / file)
            line = {"image": file, "question": "what colour is the shape ?", "answer": name, "site": f"h{number % 4}"}
            lines.append(json.dumps(line))
        (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return path


def make_base(path: Path) -> Path:
    """A tiny composed model of random weights."""
    from mllm.testing import tiny_composed

    return tiny_composed().save(path)


def options(root: Path, **changes):
    """Flat options of a small run on the tiny base; keyword ``train__amount`` means ``train.amount``."""
    flat = {
        "run.directory": str(root / "runs"),
        "run.id": "t",
        "model.name": str(root / "base"),
        "model.quantization": "none",
        "task.name": "folder",
        "task.data": str(root / "data"),
        "task.partition": "iid",
        "task.minimum": 4,
        "lora.rank": 2,
        "lora.alpha": 4.0,
        "train.amount": 2,
        "train.batch-size": 4,
        "train.learning-rate": 1e-2,
        "federation.clients": 4,
        "federation.rounds": 3,
        "federation.timeout": 60.0,
        "strategy.name": "fedit",
        "privacy.unit": "none",
        "privacy.clipping-norm": 1.0,
        "secagg.enabled": False,
    }
    for key, value in changes.items():
        flat[key.replace("__", ".").replace("_", "-")] = value
    return flat


def run_in_memory(flat, fault=None, client=None, grid_hook=None):
    """Runs the real ServerApp's work and the real ClientApp over the in-memory grid; returns the run's folder."""
    from client.client_app import app as client_app
    from coordinator.run_folder import RunFolder
    from coordinator.server_app import run
    from simulations.memory_grid import MemoryGrid
    from umbel.config import RunConfig

    config = RunConfig.from_flat(flat)
    grid = MemoryGrid(client or client_app, config.federation.clients, config.to_flat(), fault=fault)
    if grid_hook:
        grid_hook(grid)
    with RunFolder.open(config, 1) as folder:
        run(grid, config, folder)
        return folder.path


def lines(path, kind="round"):
    """Lines of one kind that a run left in its metrics, oldest first."""
    found = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def tensors(path):
    """The adapter that a run left, by PEFT's names."""
    return load_file(path / "adapter" / "adapter_model.safetensors")


def adapter(path):
    """The adapter that a run left as one vector, in the order of its names."""
    arrays = tensors(path)
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])
