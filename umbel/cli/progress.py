"""A run's progress in the terminal, read from its ``metrics.jsonl`` as the lines arrive."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator.report.text import duration, number, percent
from coordinator.tracking import Metrics, read_metrics
from umbel.cli.console import err
from umbel.cli.tables import round_sentence
from umbel.errors import RunError


class RunProgress:
    """A live bar on a terminal, one line a round elsewhere. A context manager; call :meth:`update` often.

    Args:
        metrics: the file to follow; need not exist yet.
        rounds: planned rounds.
    """

    def __init__(self, metrics: Path, rounds: int) -> None:
        self._path = metrics
        self._rounds = rounds
        self._size = -1
        self._said: set[int] = set()
        self._live = err.is_terminal
        self._state = self._detail = ""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("rounds"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=err,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("rounds", total=rounds, state="starting Flower")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, state: str) -> None:
        """Shows what is going on before the first line arrives."""
        self._bar.update(self._task, state=state)

    def detail(self, text: str) -> None:
        """Shows beside the state what happens within the round."""
        if text != self._detail:
            self._detail = text
            self._bar.update(self._task, state=f"{self._state} · {text}" if text else self._state)

    def update(self) -> Metrics | None:
        """Looks for new lines and shows them; returns the metrics when there were any."""
        try:
            size = self._path.stat().st_size
            if size == self._size:
                return None
            metrics = read_metrics(self._path)
        except (OSError, RunError):  # not there yet, or replaced at this moment: the next look will do
            return None
        self._size = size
        self._show(metrics)
        return metrics

    def _show(self, metrics: Metrics) -> None:
        for line in metrics.rounds:
            if line.round not in self._said:
                self._said.add(line.round)
                if not self._live:
                    err.print(round_sentence(line, self._rounds, metrics.headline), markup=False)
        self._state = status(metrics, self._rounds)
        self._bar.update(self._task, completed=len(metrics.rounds), state=self._state)


def seconds_left(metrics: Metrics, rounds: int) -> float | None:
    """Expected seconds for the rounds that are left: their number times the mean of the last three."""
    recent = [line.seconds["total"] for line in metrics.rounds[-3:] if "total" in line.seconds]
    return (rounds - len(metrics.rounds)) * sum(recent) / len(recent) if recent else None


def status(metrics: Metrics, rounds: int) -> str:
    """Newest accuracy, loss, survivors, epsilon and seconds left, in one line."""
    if not metrics.rounds:
        return "round 1" if metrics.start else "loading the model"
    if metrics.end is not None:
        return "finished"
    line = metrics.rounds[-1]
    measured = metrics.final.get(metrics.headline)
    parts = [f"accuracy {percent(measured.accuracy)}"] if measured else []
    parts += [f"loss {number(line.train_loss)}", f"{line.survivors}/{line.cohort} clients"]
    if line.privacy is not None and line.privacy.epsilon is not None:
        parts.append(f"ε {number(line.privacy.epsilon)}")
    if len(metrics.rounds) >= rounds:
        parts.append("last measurements" if metrics.central else "comparison and last measurements")
    else:
        parts.append(f"{duration(seconds_left(metrics, rounds))} left")
    return " · ".join(parts)
