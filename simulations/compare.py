"""Several runs on one page: a table of what they reached and spent, and their curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from coordinator.report.summary import summarize
from coordinator.report.text import duration, number, percent, size
from coordinator.run_folder import METRICS, read_config
from coordinator.tracking import Metrics, read_metrics
from simulations.simulate import options_of, read_report
from umbel.errors import RunError
from umbel.files import write_atomic

_COLORS = ("#4f46e5", "#0d9488", "#d97706", "#db2777", "#64748b", "#16a34a", "#dc2626", "#0284c7")
_DASHES = ("-", "--", ":", "-.")
_IDENTITY = ("run.id", "run.directory")

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Runs compared</title>
<style>body{font:15px/1.5 system-ui,sans-serif;color:#334155;max-width:1000px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e2e8f0}
td.n,th.n{text-align:right}svg{max-width:100%;height:auto}</style>
<h1>Runs compared</h1>
"""


@dataclass(frozen=True)
class Compared:
    """One run's row.

    Attributes:
        name: of the run.
        differs: its options that are not the same in all runs.
        metrics: of the run.
        cells: what the table shows, by column.
    """

    name: str
    differs: dict[str, Any]
    metrics: Metrics
    cells: dict[str, str]


def read_runs(folders: Sequence[Path]) -> list[Compared]:
    """Reads the runs to be compared.

    Raises:
        RunError: fewer than two runs, or one without a finished round.
    """
    if len(folders) < 2:
        raise RunError("A comparison needs at least two runs: name another one ('umbel runs' lists them).")
    options = [options_of(read_config(folder)) for folder in folders]
    keys = [key for key in dict.fromkeys(key for table in options for key in table) if key not in _IDENTITY]
    differing = [key for key in keys if len({repr(table.get(key)) for table in options}) > 1]
    found = []
    for folder, table in zip(folders, options, strict=True):
        metrics = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else Metrics()
        if not metrics.rounds:
            raise RunError(f"Run {folder.name!r} has finished no round: resume it, or leave it out.")
        summary, report = summarize(metrics), read_report(folder)
        virtual = report.get("virtual", {})
        cells = {
            "base": percent(summary.base),
            "reached": percent(summary.federated),
            "loss": number(metrics.rounds[-1].train_loss),
            "ε": number(summary.privacy.epsilon) if summary.privacy else "",
            "rounds": str(summary.rounds),
            "survived": f"{summary.survivors}/{summary.cohort}",
            "up": size(summary.bytes_up),
            "took": duration(sum(line.seconds.get("total", 0.0) for line in metrics.rounds)),
            "fleet's time": duration(virtual["seconds"]) if virtual else "",
        }
        found.append(Compared(folder.name, {key: table.get(key, "default") for key in differing}, metrics, cells))
    return found


def comparison_table(folders: Sequence[Path]) -> Any:
    """The table for a terminal (a rich Table)."""
    from rich.table import Table

    runs = read_runs(folders)
    table = Table(box=None, pad_edge=False)
    columns = [*runs[0].differs, *runs[0].cells]
    for name in ("run", *columns):
        table.add_column(name, justify="left" if name == "run" else "right")
    for run in runs:
        table.add_row(run.name, *(str(value) for value in run.differs.values()), *run.cells.values())
    return table


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Writes the page to ``path`` and returns it; everything that comes from a file is escaped.

    Raises:
        RunError: as :func:`read_runs`, or the page cannot be written.
    """
    runs = read_runs(folders)
    head = "".join(f"<th class='n'>{escape(name)}</th>" for name in (*runs[0].differs, *runs[0].cells))
    rows = ""
    for run in runs:
        values = [str(value) for value in run.differs.values()] + list(run.cells.values())
        rows += (
            f"<tr><td>{escape(run.name)}</td>" + "".join(f"<td class='n'>{escape(v)}</td>" for v in values) + "</tr>"
        )
    table = f"<table><tr><th>run</th>{head}</tr>{rows}</table>"
    plots = "".join(f"<h2>{title}</h2>{_curves(runs, title)}" for title in ("Accuracy", "Training loss"))
    write_atomic(path, (_PAGE + table + plots + "</html>\n").encode())
    return path


def _series(run: Compared, title: str) -> tuple[list[int], list[float]]:
    metrics = run.metrics
    points: list[tuple[int, float]] = []
    if title == "Accuracy":
        base = metrics.start.baseline.get(metrics.headline) if metrics.start else None
        if base is not None and base.accuracy is not None:
            points.append((0, base.accuracy))
        for line in metrics.rounds:
            measured = (line.evaluation or {}).get(metrics.headline)
            if measured is not None and measured.accuracy is not None:
                points.append((line.round, measured.accuracy))
    else:
        points = [(line.round, line.train_loss) for line in metrics.rounds if line.train_loss is not None]
    return [x for x, _ in points], [y for _, y in points]


def _curves(runs: Sequence[Compared], title: str) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure = Figure(figsize=(8.0, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        drawn = False
        for place, run in enumerate(runs):
            xs, ys = _series(run, title)
            if xs:
                drawn = True
                label = ", ".join(f"{key.partition('.')[2]}={value}" for key, value in run.differs.items()) or run.name
                color, dash = _COLORS[place % len(_COLORS)], _DASHES[place // len(_COLORS) % len(_DASHES)]
                axes.plot(xs, ys, dash, color=color, marker="o", markersize=3, label=label)
        if not drawn:
            return "<p>No run reports it.</p>"
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e2e8f0")
        axes.legend(fontsize=8, frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
