"""A small run folder written through the real RunFolder and Tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.run_folder import RunFolder
from coordinator.tracking import Tracker
from umbel.config import RunConfig


def config(root: Path, **flat: Any) -> RunConfig:
    fixed = {"run.directory": str(root / "runs"), "run.id": "one", "federation.rounds": 3}
    plain = {"strategy.name": "fedit", "privacy.unit": "none", "secagg.enabled": False, "train.learning-rate": 3e-3}
    return RunConfig.from_flat({**fixed, **plain, **flat})


def start_line(**more: Any) -> dict[str, Any]:
    private = {"accuracy": 0.72, "loss": 1.2, "count": 200, "by_type": {"what colour": (0, 50), "is there": (144, 150)}}
    public = {"accuracy": 0.97, "loss": 0.1, "count": 100, "by_type": {"what colour": (97, 100)}}
    return {
        "umbel": "0.1.0",
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "base": {"name": "demo", "hash": "ab" * 32, "quantization": "nf4", "parameters": 1_000_000, "bytes": 2**20},
        "adapter": {"size": 65536, "spec_hash": "cd" * 32},
        "task": {"name": "easy-vqa", "headline": "private", "train": 13000},
        "clients": 20,
        "privacy": None,
        "secagg": None,
        "baseline": {"private": private, "public": public},
        **more,
    }


def round_line(number: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    evaluation = None
    if accuracy is not None:
        evaluation = {
            "private": {
                "accuracy": accuracy, "loss": 1 - accuracy, "count": 200,
                "by_type": {"what colour": (40 + number, 50), "is there": (145, 150)},
            },
            "public": {"accuracy": 0.95, "loss": 0.2, "count": 100, "by_type": {}},
        }  # fmt: skip
    return {
        "round": number,
        "cohort": 20,
        "survivors": 18,
        "rejected": 1,
        "missing": 1,
        "train_loss": 1.0 / number,
        "seconds": {"broadcast": 0.5, "collect": 9.0, "step": 0.1, "evaluate": 2.0, "total": 11.7},
        "bytes_up": 5_000_000,
        "bytes_down": 5_200_000,
        "evaluation": evaluation,
        **more,
    }


def write_run(root: Path, *, finished: bool = True, start: dict[str, Any] | None = None, **flat: Any) -> Path:
    with RunFolder.open(config(root, **flat), 7) as folder:
        tracker = Tracker(folder.metrics)
        tracker.start(**(start or start_line()))
        for number, accuracy in ((1, 0.80), (2, None), (3, 0.95)):
            tracker.round(**round_line(number, accuracy))
        if finished:
            central = round_line(3, 0.96)["evaluation"]
            tracker.central(evaluation=central, seconds=60.0, examples=9600)
            tracker.end(rounds=3, seconds=42.0, evaluation=round_line(3, 0.95)["evaluation"])
        return folder.path
