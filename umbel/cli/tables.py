"""A run in the terminal: the table of rounds and the final figures."""

from __future__ import annotations

from rich.table import Table

from coordinator.report.summary import summarize
from coordinator.report.text import duration, number, percent, signed, size
from coordinator.tracking import Metrics, RoundLine
from umbel.cli.console import out


def rounds_table(metrics: Metrics) -> Table:
    """One row a round, narrow enough for 80 columns; epsilon and lost replies only where there are any.

    ``lost`` counts clients whose reply was rejected or never came; the report tells them apart.
    """
    private = any(line.privacy for line in metrics.rounds)
    lossy = any(line.rejected or line.missing for line in metrics.rounds)
    table = Table(box=None, pad_edge=False)
    names = ["round", "accuracy", "loss", "clients", *(["lost"] if lossy else []), "down", "up", "time"]
    for name in names + (["ε"] if private else []):
        table.add_column(name, justify="right", no_wrap=True)
    if metrics.start and metrics.start.baseline.get(metrics.headline):
        blanks = [""] * (len(table.columns) - 2)
        table.add_row("base", percent(metrics.start.baseline[metrics.headline].accuracy), *blanks)
    for line in metrics.rounds:
        table.add_row(*_cells(line, metrics.headline, private=private, lossy=lossy))
    return table


def _cells(line: RoundLine, headline: str, *, private: bool, lossy: bool) -> list[str]:
    measured = (line.evaluation or {}).get(headline)
    cells = [
        str(line.round),
        percent(measured.accuracy) if measured else "",
        number(line.train_loss),
        f"{line.survivors}/{line.cohort}",
        *([str(line.rejected + line.missing)] if lossy else []),
        size(line.bytes_down),
        size(line.bytes_up),
        duration(line.seconds.get("total")),
    ]
    return cells + ([number(line.privacy.epsilon) if line.privacy else ""] if private else [])


def round_sentence(line: RoundLine, planned: int, headline: str) -> str:
    """One round in one line, for terminals without a live display."""
    measured = (line.evaluation or {}).get(headline)
    accuracy = f", accuracy {percent(measured.accuracy)}" if measured else ""
    loss = f", train loss {number(line.train_loss)}" if line.train_loss is not None else ""
    spent = f", ε {number(line.privacy.epsilon)}" if line.privacy and line.privacy.epsilon is not None else ""
    return (
        f"round {line.round}/{planned}{accuracy}{loss}, {line.survivors}/{line.cohort} clients{spent}, "
        f"{duration(line.seconds.get('total'))}"
    )


def print_figures(metrics: Metrics) -> None:
    """Base, federated, central, gain, forgetting, privacy: whatever the run measured."""
    summary = summarize(metrics)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    name = f", {summary.headline}" if summary.headline else ""
    rows = [(f"base{name}", percent(summary.base)), (f"federated{name}", percent(summary.federated))]
    if summary.central is not None:
        rows.append((f"central{name}", percent(summary.central)))
    rows.append(("gain, points", signed(summary.gain)))
    rows += [(f"forgotten, {other}, points", signed(lost)) for other, lost in summary.forgotten.items()]
    if summary.privacy is not None and summary.privacy.epsilon is not None:
        rows.append(("ε at δ", f"{number(summary.privacy.epsilon)} at {number(summary.privacy.delta)}"))
    rows.append(("time", duration(summary.seconds)))
    for key, value in rows:
        table.add_row(key, value)
    out.print()
    out.print(table)
    if summary.privacy is not None and summary.privacy.statement:
        out.print(summary.privacy.statement, markup=False)
