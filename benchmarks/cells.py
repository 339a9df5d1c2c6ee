"""Cells of a benchmark: short federations over the in-memory grid, each done once and kept in a file one can read."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.clientapp import ClientApp

from benchmarks.observed import Observations, aggregate_error, observed_app
from benchmarks.real_run import of_kind
from coordinator import server_app
from coordinator.checkpoint import load_checkpoint
from coordinator.run_folder import RunFolder
from coordinator.supported import check_privacy, check_supported
from mllm.tasks.metrics import evaluate
from mllm.warm import warm_model, warm_task
from simulations.memory_grid import MemoryGrid
from strategies.planner import plan
from umbel.config import RunConfig
from umbel.errors import UmbelError

QUESTIONS = 600
"""Private test questions that a cell is measured on: the same subset for all. Two standard errors are about 0.03."""


@dataclass(frozen=True)
class Cell:
    """One run: what it is called and the options that differ from the defaults."""

    names: dict[str, Any]
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Of names, options and the base that they run on."""
        from mllm import bases

        base = bases.locate("demo")
        body = json.dumps([self.names, self.options, base.name if base else ""], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:16]


class Results:
    """One JSON line a finished cell. A cell that is there is not run again; delete the file to start afresh."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._found: dict[str, dict[str, Any]] = {body["key"]: body for body in map(json.loads, lines)}

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """What the cell gave, or None when it has not run."""
        return self._found.get(cell.key)

    def put(self, cell: Cell, figures: dict[str, Any]) -> None:
        """Appends what the cell gave."""
        body = {"key": cell.key, **cell.names, **figures}
        self._found[cell.key] = body
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps(body) + "\n")


def run_all(cells: Sequence[Cell], results: Results, work: Callable[[Cell], dict[str, Any]], limit: int = 0) -> bool:
    """Runs the cells that are missing, with a bar on stderr; at most ``limit`` when positive.

    Returns:
        Whether none is left.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    missing = [cell for cell in cells if results.get(cell) is None]
    todo = missing[:limit] if limit else missing
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("starting", total=len(cells), completed=len(cells) - len(missing))
        for cell in todo:
            bars.update(bar, description=" ".join(str(value) for value in cell.names.values()))
            results.put(cell, work(cell))
            bars.advance(bar)
    return len(todo) == len(missing)


def refusal(options: dict[str, Any]) -> str:
    """Why such a run is refused before it starts, or ""."""
    config = RunConfig.from_flat({"run.id": "cell", **options})
    try:
        check_supported(config)
        check_privacy(config)
    except UmbelError as error:
        return str(error)
    return ""


def federate(options: dict[str, Any], client: ClientApp | None = None) -> dict[str, Any]:
    """Runs one federation in this process and measures it.

    Returns:
        accuracy of the global adapter, or where part of the adapter is personal the mean over the clients' own
        adapters; base accuracy; bytes up and down of all rounds; the aggregate's error in the last round (None for
        personal methods and where ``client`` is given); epsilon; wall-clock seconds of the rounds.
    """
    seen = Observations()
    with tempfile.TemporaryDirectory(prefix="umbel-bench-") as scratch:
        flat = {"run.directory": scratch, "run.id": "cell", "evaluate.every": 0, "evaluate.others": 1, **options}
        config = RunConfig.from_flat(flat | {"evaluate.main": QUESTIONS})
        grid = MemoryGrid(client or observed_app(seen), config.federation.clients, config.to_flat())
        started = time.perf_counter()
        with _Quiet(), RunFolder.open(config, 1) as folder:
            server_app.run(grid, config, folder)
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        warm = warm_model(config)
        checkpoint = load_checkpoint(folder.checkpoint, warm.tuned.spec)
    assert checkpoint is not None
    rounds = [line for line in lines if line["kind"] == "round"]
    headline = warm_task(config).headline
    figures: dict[str, Any] = {
        "accuracy": of_kind(lines, "end")["evaluation"][headline]["accuracy"],
        "base": of_kind(lines, "start")["baseline"][headline]["accuracy"],
        "bytes_up": sum(line["bytes_up"] for line in rounds),
        "bytes_down": sum(line["bytes_down"] for line in rounds),
        "seconds": sum(line["seconds"]["total"] for line in rounds),
        "wall": seconds,
        "epsilon": (rounds[-1].get("privacy") or {}).get("epsilon"),
        "aggregate_error": None,
    }
    strategy, spec, state = plan(config), warm.tuned.spec, checkpoint.state
    if client is None and strategy.facts.personal:
        figures["accuracy"] = _personal(config, seen, checkpoint.round, state.adapter)
    elif client is None:
        figures["aggregate_error"] = aggregate_error(spec, list(seen.last.values()), state.adapter, state.arrays)
    return figures


def _personal(config: RunConfig, seen: Observations, rounds: int, adapter: Any) -> float:
    """Mean accuracy of the clients' own adapters: the last aggregate with what each client kept put back."""
    warm, task, strategy = warm_model(config), warm_task(config), plan(config)
    found = []
    for one in seen.last.values():
        warm.tuned.load(strategy.restore(warm.tuned.spec, adapter, one.kept, rounds + 1))
        examples = task.evaluation[task.headline]
        measured = evaluate(warm.tuned.model, warm.collator, examples, batch_size=64, limit=QUESTIONS)
        found.append(measured.accuracy)
    return float(np.mean(found))


class _Quiet:
    """Keeps a run's own log lines and warnings out of the progress bar; errors still show."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__(None, None, None)
        logging.disable(logging.NOTSET)


def mean_rows(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The mean over seeds of each figure that all of them have."""
    for key in keys:
        values = [row[key] for row in rows]
        yield key, None if any(value is None for value in values) else float(np.mean(values))
