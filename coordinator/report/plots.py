"""The plots of a run as inline SVG, drawn with matplotlib; text stays text and takes the page's font."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from coordinator.tracking import Figures, Metrics

_INK = "#334155"
_GRID = "#e2e8f0"
_COLORS = ("#4f46e5", "#0d9488", "#d97706", "#db2777", "#64748b")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
}


def draw_all(metrics: Metrics) -> dict[str, str]:
    """SVG by title: accuracy, loss, participation, bytes, seconds; empty when no round was finished."""
    if not metrics.rounds:
        return {}
    painters: dict[str, Callable[[Any, Metrics], None]] = {
        "Accuracy": _accuracy,
        "Loss": _loss,
        "Participation": _participation,
        "Traffic": _traffic,
        "Time": _time,
    }
    return {title: _svg(title, painter, metrics) for title, painter in painters.items()}


def _svg(title: str, paint: Callable[[Any, Metrics], None], metrics: Metrics) -> str:
    # The object-oriented interface: no global pyplot state, so reports may be drawn from any thread.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Clip paths are named by a hash of this salt: several plots on one page must not share names.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        paint(axes, metrics)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.tick_params(length=0)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper left", ncols=4, fontsize=9)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="img"', re.sub(r' height="[^"]*pt"', "", text, count=1))


def _series(metrics: Metrics, value: Callable[[Figures], float | None]) -> dict[str, tuple[list[int], list[float]]]:
    """By evaluation set: rounds and values; round 0 is the base."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    moments = [(0, metrics.start.baseline if metrics.start else {})]
    moments += [(line.round, line.evaluation or {}) for line in metrics.rounds]
    for moment, sets in moments:
        for name, figures in sets.items():
            number = value(figures)
            if number is not None:
                xs, ys = found.setdefault(name, ([], []))
                xs.append(moment)
                ys.append(number)
    return found


def _literal(name: str) -> str:
    """A name as it is: no mathematics between dollars, and not hidden for a leading underscore."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def _accuracy(axes: Any, metrics: Metrics) -> None:
    for color, (name, (xs, ys)) in zip(_COLORS * 9, _series(metrics, lambda f: f.accuracy).items(), strict=False):
        axes.plot(xs, [100 * y for y in ys], marker="o", color=color, label=_literal(name))
    figures = metrics.central.evaluation.get(metrics.headline) if metrics.central else None
    if figures is not None and figures.accuracy is not None:
        axes.axhline(100 * figures.accuracy, color=_INK, linestyle=(0, (4, 3)), linewidth=1.2, label="central")
    axes.set_ylabel("accuracy, %")


def _loss(axes: Any, metrics: Metrics) -> None:
    rows = [(line.round, line.train_loss) for line in metrics.rounds if line.train_loss is not None]
    if rows:
        axes.plot(*zip(*rows, strict=True), marker="o", color=_COLORS[4], label="training")
    for color, (name, (xs, ys)) in zip(_COLORS * 9, _series(metrics, lambda f: f.loss).items(), strict=False):
        axes.plot(xs, ys, marker="o", color=color, label=_literal(name))
    axes.set_ylabel("loss")


def _participation(axes: Any, metrics: Metrics) -> None:
    xs = [line.round for line in metrics.rounds]
    bottom = [0] * len(xs)
    rows = {
        "survivors": (_COLORS[1], [line.survivors for line in metrics.rounds]),
        "rejected": (_COLORS[3], [line.rejected for line in metrics.rounds]),
        "missing": ("#cbd5e1", [line.missing for line in metrics.rounds]),
    }
    for label, (color, ys) in rows.items():
        axes.bar(xs, ys, bottom=bottom, color=color, width=0.7, label=label)
        bottom = [b + y for b, y in zip(bottom, ys, strict=True)]
    axes.step(
        [xs[0] - 0.5, *(x + 0.5 for x in xs)],
        [metrics.rounds[0].cohort, *(line.cohort for line in metrics.rounds)],
        color=_INK, linewidth=1.2, label="cohort",
    )  # fmt: skip
    axes.set_ylabel("clients")


def _traffic(axes: Any, metrics: Metrics) -> None:
    xs = [line.round for line in metrics.rounds]
    axes.bar([x - 0.2 for x in xs], [line.bytes_down / 2**20 for line in metrics.rounds], 0.38, color=_COLORS[0],
             label="down")  # fmt: skip
    axes.bar([x + 0.2 for x in xs], [line.bytes_up / 2**20 for line in metrics.rounds], 0.38, color=_COLORS[2],
             label="up")  # fmt: skip
    axes.set_ylabel("MiB, all clients")


def _time(axes: Any, metrics: Metrics) -> None:
    xs = [line.round for line in metrics.rounds]
    stages = list(dict.fromkeys(name for line in metrics.rounds for name in line.seconds if name != "total"))
    bottom = [0.0] * len(xs)
    for color, stage in zip(_COLORS * 9, stages, strict=False):
        ys = [line.seconds.get(stage, 0.0) for line in metrics.rounds]
        axes.bar(xs, ys, bottom=bottom, color=color, width=0.7, label=stage)
        bottom = [b + y for b, y in zip(bottom, ys, strict=True)]
    if not stages:
        axes.bar(xs, [line.seconds.get("total", 0.0) for line in metrics.rounds], color=_COLORS[0], width=0.7)
    axes.set_ylabel("seconds")
