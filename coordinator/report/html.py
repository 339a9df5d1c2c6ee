"""``report.html``: one self-contained page, plots inlined, no external resource."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from coordinator.report.plots import draw_all
from coordinator.report.summary import summarize
from coordinator.report.template import PAGE
from coordinator.report.text import duration, number, percent, signed, size
from coordinator.run_folder import METRICS, REPORT, read_config
from coordinator.tracking import Adapter, Base, Metrics, RoundLine, read_metrics
from umbel.config import RunConfig
from umbel.files import write_atomic


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` of the run in ``folder`` from its config and metrics; returns its path.

    An unfinished run gives a report that says so.

    Raises:
        RunError: config or metrics cannot be read, or the report cannot be written.
        ConfigError: the config holds an option that this version does not know.
    """
    page = render_report(folder.name, read_config(folder), read_metrics(folder / METRICS))
    write_atomic(folder / REPORT, page.encode())
    return folder / REPORT


def render_report(run_id: str, config: RunConfig, metrics: Metrics) -> str:
    """The page as text. Everything that comes from a file is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, signed=signed, number=number, size=size, duration=duration)
    start = metrics.start
    summary = summarize(metrics)
    return environment.from_string(PAGE).render(
        id=run_id,
        config=config.to_nested(),
        s=summary,
        plots=draw_all(metrics),
        rounds=metrics.rounds,
        planned=config.federation.rounds,
        finished=metrics.end is not None,
        clients=(start.clients if start else 0) or config.federation.clients,
        base=start.base if start else Base(name=config.model.name),
        adapter=start.adapter if start else Adapter(),
        task_name=(start.task.get("name") if start else None) or config.task.name,
        skipped=list(start.task.get("skipped", ())) if start else [],
        started=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(start.time)) if start and start.time else "",
        versions={**({"umbel": start.umbel} if start.umbel else {}), **start.versions} if start else {},
        privacy_rows=_rows(summary.privacy, skip=("statement",)),
        secagg=start.secagg if start else None,
        secagg_rows=_rows(start.secagg if start else None, skip=("threshold", "mode", "stages")),
        stages=_stages(metrics.rounds),
    )


def _rows(section: Any, *, skip: tuple[str, ...]) -> list[tuple[str, str]]:
    """A section's scalar values in words, those that are set."""
    if section is None:
        return []
    rows = []
    for key, value in section.model_dump().items():
        if key in skip or value in (None, "") or isinstance(value, dict | list):
            continue
        shown = number(value) if isinstance(value, float) else str(value)
        rows.append((key.replace("_", " "), shown))
    return rows


def _stages(rounds: list[RoundLine]) -> list[tuple[str, int, float, int]]:
    """By protocol stage: fewest clients alive in any round, median seconds, bytes of all rounds."""
    lines = [line.secagg.stages for line in rounds if line.secagg]
    names = list(dict.fromkeys(name for stages in lines for name in stages))
    result = []
    for name in names:
        seen = [stages[name] for stages in lines if name in stages]
        result.append(
            (
                name,
                min(stage.alive for stage in seen),
                statistics.median(stage.seconds for stage in seen),
                sum(stage.bytes for stage in seen),
            )
        )
    return result
