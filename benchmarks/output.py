"""How benchmarks speak: a table for people, or with --json one JSON object on the last line."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with ``--json``."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return made


def finish(figures: dict[str, Any], *, as_json: bool) -> None:
    """Prints the figures: the JSON line last, or indented for reading."""
    print(json.dumps(figures, separators=(", ", ": ")) if as_json else json.dumps(figures, indent=2), flush=True)


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall-clock seconds of ``work``, after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def in_turns(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall-clock seconds of each work, taken in turns so that a slow spell hits all alike."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, kept in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in times]
