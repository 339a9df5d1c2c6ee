"""RunsCollector: every run of a folder as Prometheus figures, read from ``metrics.jsonl`` when they are asked for.

A ServerApp lives as long as its run; who watches wants figures that outlive it. Reading what each round wrote anyway
keeps the training process out of it, and a restart loses no count.

No figure is about one client. Labels are the run, a phase, a direction, a protocol stage, an outcome or an evaluation
set: their number does not depend on who takes part, whether or not the run aggregates securely. What a line may say
of single sites (in simulation their epsilons) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coordinator.run_folder import METRICS, list_runs, read_config, read_error
from coordinator.tracking import Metrics, read_metrics
from umbel.config import RunConfig
from umbel.errors import UmbelError


@dataclass(frozen=True, slots=True)
class _Run:
    name: str
    config: RunConfig
    metrics: Metrics
    state: str
    changed: float


class RunsCollector(Collector):
    """Figures of all runs in a folder.

    A run that cannot be read is counted in ``umbel_runs_unreadable`` and hides no other.

    Args:
        directory: of the runs; a relative one counts from UMBEL_ROOT, or the working directory.
        newest: how many runs are shown, by the time they were made: the number of series stays bounded.
    """

    def __init__(self, directory: str = "runs", newest: int = 50) -> None:
        self._directory = directory
        self._newest = newest
        self._known: dict[Path, tuple[tuple[float, int], Metrics]] = {}

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Reads what has changed since it was asked last."""
        runs, broken = [], 0
        folders = list_runs(self._directory)[-self._newest :]
        self._known = {path: known for path, known in self._known.items() if path in folders}
        for folder in folders:
            try:
                runs.append(self._read(folder))
            except (UmbelError, OSError):
                broken += 1
        yield GaugeMetricFamily("umbel_runs_unreadable", "Run folders that cannot be read.", value=broken)
        yield from _states(runs)
        yield from _rounds(runs)
        yield from _privacy(runs)
        yield from _evaluations(runs)

    def _read(self, folder: Path) -> _Run:
        path = folder / METRICS
        config, metrics, changed = read_config(folder), Metrics(), folder.stat().st_mtime
        if path.is_file():
            status = path.stat()
            stamp, changed = (status.st_mtime, status.st_size), status.st_mtime
            found = self._known.get(folder)
            metrics = found[1] if found is not None and found[0] == stamp else read_metrics(path)
            self._known[folder] = (stamp, metrics)
        state = "finished" if metrics.end else "failed" if read_error(folder) else "unfinished"
        return _Run(folder.name, config, metrics, state, changed)


def _states(runs: list[_Run]) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "umbel_run_info",
        "1 for each run, with what it is.",
        labels=["run", "state", "strategy", "task", "base", "secagg", "unit"],
    )
    planned = GaugeMetricFamily("umbel_rounds_planned", "Rounds of the whole run.", labels=["run"])
    done = CounterMetricFamily("umbel_rounds", "Rounds that have ended.", labels=["run"])
    changed = GaugeMetricFamily(
        "umbel_run_last_change_timestamp_seconds", "When the run last wrote a line.", labels=["run"]
    )
    for run in runs:
        config, base = run.config, run.metrics.start.base.name if run.metrics.start else run.config.model.name
        secagg = "on" if config.secagg.enabled else "off"
        labels = [run.name, run.state, config.strategy.name, config.task.name, base, secagg, config.privacy.unit]
        info.add_metric(labels, 1)
        planned.add_metric([run.name], config.federation.rounds)
        done.add_metric([run.name], len(run.metrics.rounds))
        changed.add_metric([run.name], run.changed)
    yield from (info, planned, done, changed)


def _rounds(runs: list[_Run]) -> Iterator[Metric]:
    updates = CounterMetricFamily(
        "umbel_updates", "Updates asked for, by what became of them.", labels=["run", "outcome"]
    )
    sent = CounterMetricFamily("umbel_bytes", "Bytes of updates and adapters.", labels=["run", "direction"])
    time = CounterMetricFamily("umbel_phase_seconds", "Time spent, by phase of a round.", labels=["run", "phase"])
    survivors = GaugeMetricFamily("umbel_round_survivors", "Clients in the last round's sum.", labels=["run"])
    cohort = GaugeMetricFamily("umbel_round_cohort", "Clients asked in the last round.", labels=["run"])
    last = GaugeMetricFamily("umbel_round_phase_seconds", "Time of the last round, by phase.", labels=["run", "phase"])
    alive = GaugeMetricFamily(
        "umbel_secagg_stage_alive",
        "Clients that passed a stage of the last round's secure sum.",
        labels=["run", "stage"],
    )
    stage_time = GaugeMetricFamily(
        "umbel_secagg_stage_seconds", "Time of the stages of the last round's secure sum.", labels=["run", "stage"]
    )
    for run in runs:
        lines = run.metrics.rounds
        updates.add_metric([run.name, "survived"], sum(line.survivors for line in lines))
        updates.add_metric([run.name, "missing"], sum(line.missing for line in lines))
        updates.add_metric([run.name, "rejected"], sum(line.rejected for line in lines))
        sent.add_metric([run.name, "up"], sum(line.bytes_up for line in lines))
        sent.add_metric([run.name, "down"], sum(line.bytes_down for line in lines))
        for phase in sorted({phase for line in lines for phase in line.seconds}):
            time.add_metric([run.name, phase], sum(line.seconds.get(phase, 0.0) for line in lines))
        if lines:
            survivors.add_metric([run.name], lines[-1].survivors)
            cohort.add_metric([run.name], lines[-1].cohort)
            for phase, seconds in sorted(lines[-1].seconds.items()):
                last.add_metric([run.name, phase], seconds)
            stages = lines[-1].secagg.stages if lines[-1].secagg else {}
            for stage, passed in stages.items():
                alive.add_metric([run.name, stage], passed.alive)
                stage_time.add_metric([run.name, stage], passed.seconds)
    yield from (updates, sent, time, survivors, cohort, last, alive, stage_time)


def _privacy(runs: list[_Run]) -> Iterator[Metric]:
    """What is left is said only where the coordinator books it: elsewhere each site does, and shows it itself."""
    budget = GaugeMetricFamily("umbel_epsilon_budget", "Epsilon of the whole run, at umbel_delta.", labels=["run"])
    delta = GaugeMetricFamily("umbel_delta", "Delta of the run's guarantee.", labels=["run"])
    spent = GaugeMetricFamily("umbel_epsilon_spent", "Epsilon spent, where the coordinator books it.", labels=["run"])
    left = GaugeMetricFamily(
        "umbel_epsilon_left", "Epsilon left of the run's, where the coordinator books it.", labels=["run"]
    )
    for run in runs:
        privacy = run.config.privacy
        if privacy.unit == "none":
            continue
        budget.add_metric([run.name], privacy.epsilon)
        delta.add_metric([run.name], privacy.delta)
        if privacy.unit != "client" or privacy.place == "update":
            continue
        rounds = run.metrics.rounds
        if not rounds:
            now: float | None = 0.0
        else:
            now = rounds[-1].privacy.epsilon if rounds[-1].privacy else None
        if now is not None:
            spent.add_metric([run.name], now)
            left.add_metric([run.name], max(0.0, privacy.epsilon - now))
    yield from (budget, delta, spent, left)


def _evaluations(runs: list[_Run]) -> Iterator[Metric]:
    accuracy = GaugeMetricFamily("umbel_accuracy", "Newest accuracy of the adapter, 0 to 1.", labels=["run", "set"])
    loss = GaugeMetricFamily("umbel_loss", "Newest loss of the adapter.", labels=["run", "set"])
    for run in runs:
        for name, figures in run.metrics.final.items():
            if figures.accuracy is not None:
                accuracy.add_metric([run.name, name], figures.accuracy)
            if figures.loss is not None:
                loss.add_metric([run.name, name], figures.loss)
    yield from (accuracy, loss)
