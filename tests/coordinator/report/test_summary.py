import pytest

from coordinator.report import summarize
from coordinator.report.text import duration, number, percent, signed, size
from coordinator.tracking import Metrics, RoundLine, StartLine, read_metrics
from tests.coordinator.sample_run import round_line, start_line, write_run


def test_headline_figures(tmp_path):
    summary = summarize(read_metrics(write_run(tmp_path) / "metrics.jsonl"))
    assert (summary.headline, summary.base, summary.federated, summary.central) == ("private", 0.72, 0.95, 0.96)
    assert summary.gain == pytest.approx(23.0)
    assert summary.gap == pytest.approx(1.0)
    assert summary.forgotten == {"public": pytest.approx(2.0)}
    assert (summary.rounds, summary.cohort, summary.survivors, summary.rejected, summary.missing) == (3, 60, 54, 3, 3)
    assert summary.bytes_up == 15_000_000
    assert [(t.name, t.count, t.base) for t in summary.types] == [("is there", 150, 0.96), ("what colour", 50, 0.0)]
    assert summary.types[1].federated == pytest.approx(43 / 50)


def test_nothing_is_guessed():
    summary = summarize(Metrics())
    assert (summary.base, summary.federated, summary.central, summary.gain, summary.gap) == (None,) * 5
    assert summary.sets == []
    assert summary.privacy is None
    assert summary.seconds == 0.0


def test_an_unfinished_run_takes_its_newest_evaluation(tmp_path):
    summary = summarize(read_metrics(write_run(tmp_path, finished=False) / "metrics.jsonl"))
    assert summary.federated == 0.95
    assert summary.central is None
    assert summary.seconds == pytest.approx(3 * 11.7)


def test_spent_privacy_is_the_last_rounds_over_the_starts_words():
    promised = {"epsilon": 8.0, "delta": 1e-5, "unit": "example", "statement": "Each example is protected."}
    start = StartLine.model_validate({"kind": "start", **start_line(privacy=promised)})
    lines = [
        RoundLine.model_validate({"kind": "round", **round_line(1, None, privacy={"epsilon": 2.5, "statement": ""})}),
        RoundLine.model_validate({"kind": "round", **round_line(2, None)}),
    ]
    metrics = Metrics(start, lines)
    spent = summarize(metrics).privacy
    assert spent is not None
    assert (spent.epsilon, spent.delta, spent.unit, spent.statement) == (
        2.5, 1e-5, "example", "Each example is protected.",
    )  # fmt: skip


def test_numbers_as_people_read_them():
    assert [percent(v) for v in (0.9512, 0.0, None, float("nan"))] == ["95.1%", "0.0%", "–", "–"]
    assert [signed(v) for v in (2.04, -1.0, None)] == ["+2.0", "-1.0", "–"]
    assert [number(v) for v in (0.12345, 1000000, None, float("inf"), 1e-5)] == [
        "0.123",
        "1,000,000",
        "–",
        "–",
        "1e-05",
    ]
    assert [size(v) for v in (0, 1536, 3 * 2**20, 2**50, None)] == ["0 B", "1.5 KiB", "3.0 MiB", "1024.0 TiB", "–"]
    assert [duration(v) for v in (3.42, 125, 3720, None)] == ["3.4 s", "2 min 05 s", "1 h 02 min", "–"]
