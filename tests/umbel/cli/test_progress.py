import pytest

from coordinator.tracking import Metrics, Tracker, read_metrics
from tests.coordinator.sample_run import round_line, start_line, write_run
from umbel.cli.progress import RunProgress, seconds_left, status
from umbel.cli.tables import rounds_table


def test_each_round_is_said_once(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    tracker = Tracker(path)
    with RunProgress(path, 3) as progress:
        assert progress.update() is None
        tracker.start(**start_line())
        tracker.round(**round_line(1, 0.8, privacy={"epsilon": 1.25}))
        assert progress.update() is not None
        assert progress.update() is None
        tracker.round(**round_line(2, None))
        progress.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "round 1/3, accuracy 80.0%, train loss 1, 18/20 clients, ε 1.25, 11.7 s",
        "round 2/3, train loss 0.5, 18/20 clients, 11.7 s",
    ]


def test_a_line_that_is_being_written_waits_for_the_next_look(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Tracker(path).start(**start_line())
    with path.open("ab") as stream, RunProgress(path, 3) as progress:
        stream.write(b'{"kind":"round","rou')
        stream.flush()
        metrics = progress.update()
        assert metrics is not None
        assert metrics.rounds == []


def test_status(tmp_path):
    assert status(Metrics(), 3) == "loading the model"
    path = write_run(tmp_path, finished=False) / "metrics.jsonl"
    metrics = read_metrics(path)
    assert status(Metrics(metrics.start), 3) == "round 1"
    assert status(metrics, 3).endswith("comparison and last measurements")
    half = Metrics(metrics.start, metrics.rounds[:2])
    assert seconds_left(half, 4) == pytest.approx(2 * 11.7)
    assert status(half, 4) == "accuracy 80.0% · loss 0.5 · 18/20 clients · 23.4 s left"
    assert seconds_left(Metrics(), 4) is None


def test_the_table_has_a_row_a_round_and_epsilon_only_where_stated(tmp_path):
    metrics = read_metrics(write_run(tmp_path) / "metrics.jsonl")
    table = rounds_table(metrics)
    assert table.row_count == 4  # the base and three rounds
    assert [column.header for column in table.columns][-1] == "time"
    from coordinator.tracking import RoundLine

    line = RoundLine.model_validate({"kind": "round", **round_line(1, 0.8, privacy={"epsilon": 1.5})})
    private = rounds_table(Metrics(metrics.start, [line]))
    assert private.columns[-1].header == "ε"
    assert list(private.columns[-1].cells)[-1] == "1.5"
