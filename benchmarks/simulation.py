"""Rounds of many virtual devices: RayGrid, Flower's simulation runtime, pfl, hand-written actors and a plain loop.

``noop``: devices that train nothing and send updates of 0.1, 4 and 40 MB; seconds of a warm round. ``train``: four LoRA
steps of a tiny vision-language model, the same data and seeds everywhere; ``max_difference`` is the largest difference
of a mean update from the plain loop's, over the largest value of the loop's. ``growth``: seconds and memory of our
round from 50 to 1000 devices, drawn into ``docs/figures``. Each system runs in a process of its own.

pfl is measured where ``--pfl-python`` names a Python that has it (it wants other versions of what umbel stands on).
BlazeFL 3.0 needs Python 3.14 and is left out.

    python -m benchmarks.simulation --json
    python -m benchmarks.simulation --only train --devices 256 --systems ours,loop
    python -m benchmarks.simulation --results FILE --limit 4    # four more cells; again until none is left

With ``--results`` each cell (one system, one kind, one number of devices, one size) is measured once and kept: a line
of figures in the file, its mean in the folder ``FILE.means`` beside it, so that a later cell is checked against it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Cell, Results
from benchmarks.output import finish, parser

NOOP_MB = (0.1, 4.0, 40.0)
NOOP_DEVICES = (100, 300, 500)
TRAIN_DEVICES = (64, 256, 500)
GROWTH_DEVICES = (50, 100, 200, 400, 700, 1000)
_NOOP_SYSTEMS = ("ours", "flower", "actors", "pfl")
_TRAIN_SYSTEMS = ("ours", "flower", "packed", "loop", "pfl")
_FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "simulation-growth.svg"


class Bench:
    """Runs one system at a time and keeps the means that they leave.

    Args:
        root: scratch: base, data, means.
        actors: processes of each system.
        pfl_python: a Python that has pfl, or None.
        results: keeps cells that were measured; None measures every cell.
        limit: most cells to measure now; 0 measures all.
    """

    def __init__(
        self, root: Path, actors: int, pfl_python: str | None, results: Results | None = None, limit: int = 0
    ) -> None:
        self._root = root
        self._actors = actors
        self._pfl = pfl_python
        self._results = results
        self._left = limit or sys.maxsize
        self.skipped = 0

    def run(self, system: str, kind: str, devices: int, *, mb: float = 0.1, repeats: int = 3) -> dict[str, Any]:
        """What one system measured, and its mean under ``mean``; empty where a rival is not there or failed.

        Empty too where the limit is reached before this cell; ``skipped`` counts those.
        """
        if system == "pfl" and self._pfl is None:
            return {}
        if self._results is None:
            return self._measure(system, kind, devices, mb, repeats, self._root / f"{system}-{kind}-{devices}-{mb}.npy")
        names = {"system": system, "kind": kind, "devices": devices} | ({"mb": mb} if kind == "noop" else {})
        cell = Cell(names, {"actors": self._actors, "repeats": repeats})
        mean = self._results.path.with_suffix(".means") / f"{cell.key}.npy"
        found = self._results.get(cell)
        if found is not None and mean.exists():
            return {key: value for key, value in found.items() if key not in names} | {"mean": np.load(mean)}
        if self._left <= 0:
            self.skipped += 1
            return {}
        self._left -= 1
        mean.parent.mkdir(parents=True, exist_ok=True)
        figures = self._measure(system, kind, devices, mb, repeats, mean)
        if figures:
            self._results.put(cell, {key: value for key, value in figures.items() if key != "mean"})
        return figures

    def _measure(self, system: str, kind: str, devices: int, mb: float, repeats: int, mean: Path) -> dict[str, Any]:
        python = self._pfl if system == "pfl" and self._pfl else sys.executable
        command = [python, "-m", "benchmarks.simulators", system, kind, "--devices", str(devices), "--mb", str(mb)]
        command += ["--actors", str(self._actors), "--repeats", str(repeats)]
        command += ["--root", str(self._root), "--mean", str(mean)]
        environment = os.environ | {"UMBEL_HOME": str(self._root / "home"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            words = " ".join(done.stderr.strip().splitlines()[-1:])
            print(f"{system} {kind} {devices}: failed ({words[:300]})", file=sys.stderr, flush=True)
            return {}
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(f"{system} {kind} {devices} {mb if kind == 'noop' else ''}: {figures}", file=sys.stderr, flush=True)
        return figures | {"mean": np.load(mean)}


def noop(bench: Bench, devices: list[int], sizes: list[float], systems: set[str]) -> list[dict[str, Any]]:
    """Part (a). The means of all systems are checked to agree."""
    lines = []
    for mb in sizes:
        for count in devices:
            line: dict[str, Any] = {"devices": count, "mb": mb}
            means: dict[str, Any] = {}
            for system in [system for system in _NOOP_SYSTEMS if system in systems]:
                found = bench.run(system, "noop", count, mb=mb, repeats=1 if system == "flower" else 3)
                if found:
                    line[f"{system}_s"] = round(found["seconds"], 3)
                    means[system] = found["mean"]
            _agree(means, 1e-5)  # pfl sums hundreds of float32 vectors one after the other
            lines.append(line)
    return lines


def train(bench: Bench, devices: list[int], systems: set[str]) -> list[dict[str, Any]]:
    """Part (b)."""
    lines = []
    for count in devices:
        line: dict[str, Any] = {"devices": count}
        means: dict[str, Any] = {}
        for system in [system for system in _TRAIN_SYSTEMS if system in systems]:
            found = bench.run(system, "train", count, repeats=3 if system == "ours" else 1)
            if found:
                line[f"{system}_s"] = round(found["seconds"], 2)
                means[system] = found["mean"]
                if "steps_s" in found:
                    line["steps_s"] = round(found["steps_s"], 2)
        if "loop" in means:
            scale = float(np.abs(means["loop"]).max())
            differences = {name: float(np.abs(mean - means["loop"]).max()) / scale for name, mean in means.items()}
            line["max_difference"] = differences.get("ours")
            line["differences"] = {name: value for name, value in differences.items() if name != "loop"}
        if "ours" in means and "packed" in means:
            line["packed_is_bit_identical"] = bool(np.array_equal(means["ours"], means["packed"]))
        lines.append(line)
    return lines


def growth(bench: Bench, devices: list[int]) -> list[dict[str, Any]]:
    """Part (c)."""
    lines = []
    for count in devices:
        found = bench.run("ours", "train", count, repeats=2)
        if found:
            seconds, peak = round(found["seconds"], 2), round(found["peak_mb"])
            lines.append({"devices": count, "seconds": seconds, "peak_mb": peak})
    return lines


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over the number of devices, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(panels, ("seconds", "peak_mb"), ("seconds a round", "peak memory, MB"), strict=True):
        axes.plot([line["devices"] for line in lines], [line[key] for line in lines], marker="o", color="#4f46e5")
        axes.set_xlabel("devices")
        axes.set_ylabel(label)
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.grid(color="#e2e8f0")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _agree(means: dict[str, Any], tolerance: float) -> None:
    for name, mean in means.items():
        first = next(iter(means.values()))
        if not np.allclose(mean, first, rtol=tolerance, atol=tolerance * float(np.abs(first).max())):
            raise SystemExit(f"{name} computes another mean than the others: the comparison would not be fair")


def main() -> None:
    """Runs what was asked for and prints the figures."""
    made = parser("Simulation runtimes.")
    made.add_argument("--only", choices=["noop", "train", "growth"], help="one part instead of all")
    made.add_argument("--devices", help="numbers of devices, comma-separated")
    made.add_argument("--mb", help="sizes of updates in MB, comma-separated")
    made.add_argument("--systems", help="of ours, flower, packed, actors, pfl and loop, comma-separated")
    made.add_argument("--actors", type=int, default=os.cpu_count() or 1)
    made.add_argument("--results", type=Path, help="keeps what was measured; cells that stand there are not run again")
    made.add_argument("--limit", type=int, default=0, help="most cells to measure now; 0 measures all")
    made.add_argument("--pfl-python", default=os.environ.get("UMBEL_PFL_PYTHON"), help="a Python that has pfl 0.6")
    arguments = made.parse_args()
    parts = [arguments.only] if arguments.only else ["noop", "train", "growth"]
    systems = set((arguments.systems or ",".join({*_NOOP_SYSTEMS, *_TRAIN_SYSTEMS})).split(","))
    chosen = [int(n) for n in arguments.devices.split(",")] if arguments.devices else None
    figures: dict[str, Any] = {}
    results = Results(arguments.results) if arguments.results else None
    with tempfile.TemporaryDirectory(prefix="umbel-bench-") as folder:
        root = arguments.results.with_suffix(".root").absolute() if arguments.results else Path(folder)
        bench = Bench(root, arguments.actors, arguments.pfl_python, results, arguments.limit)
        if "noop" in parts:
            sizes = [float(mb) for mb in arguments.mb.split(",")] if arguments.mb else list(NOOP_MB)
            figures["noop"] = noop(bench, chosen or list(NOOP_DEVICES), sizes, systems)
        if "train" in parts:
            figures["train"] = train(bench, chosen or list(TRAIN_DEVICES), systems)
        if "growth" in parts:
            figures["growth"] = growth(bench, chosen or list(GROWTH_DEVICES))
            if not chosen and len(figures["growth"]) == len(GROWTH_DEVICES):
                draw(figures["growth"], _FIGURE)
    if bench.skipped:
        print(f"{bench.skipped} cells are left: run the same command again", file=sys.stderr)
    finish(figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
