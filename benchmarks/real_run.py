"""A real run under Flower's simulation runtime, for benchmarks: `umbel run` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WITHOUT_PRIVACY: dict[str, Any] = {
    "privacy.unit": "none",
    "strategy.name": "fedit",
    "train.amount": 160,
    "train.batch-size": 4,
    "train.microbatch": 4,
    "train.learning-rate": 1e-3,
    "model.feature-cache": "memory",
    "federation.lanes": 10,
}
"""The demo's job without differential privacy. Private training wants few steps on large batches with a high rate;
plain training wants many small ones, so each side of a comparison gets what suits it: the match of word and colour
emerges after about 800 steps in a row, and 40 steps of 16 a round end before it."""


def run_umbel(options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Runs the demo's job with some options changed; returns the lines of its metrics.

    Raises:
        SystemExit: the run failed; its last words are the message.
    """
    given = {"run.directory": str(folder), "run.id": "benchmark", **options}
    command = [sys.executable, "-m", "umbel", "run"]
    for key, value in given.items():
        command += ["-c", f"{key}={json.dumps(value)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"umbel run left with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    text = (folder / "benchmark" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def in_scratch(options: dict[str, Any]) -> list[dict[str, Any]]:
    """:func:`run_umbel` in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="umbel-bench-") as folder:
        return run_umbel(options, Path(folder))


def of_kind(lines: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The last line of a kind."""
    return next(line for line in reversed(lines) if line["kind"] == kind)
