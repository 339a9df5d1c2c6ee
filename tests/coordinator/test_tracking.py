import errno
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.tracking import Metrics, Tracker, read_metrics
from tests.coordinator.sample_run import round_line, start_line, write_run
from umbel.errors import RunError


def tracked(path, rounds=3):
    tracker = Tracker(path)
    tracker.start(**start_line())
    for number in range(1, rounds + 1):
        tracker.round(**round_line(number, 0.5 + 0.1 * number))
    return tracker


def test_what_is_written_is_read(tmp_path):
    metrics = read_metrics(write_run(tmp_path) / "metrics.jsonl")
    assert metrics.start is not None
    assert metrics.start.baseline["private"].by_type["is there"] == (144, 150)
    assert [line.round for line in metrics.rounds] == [1, 2, 3]
    assert metrics.rounds[1].evaluation is None
    assert metrics.rounds[0].seconds["collect"] == 9.0
    assert metrics.central is not None
    assert metrics.central.examples == 9600
    assert metrics.end is not None
    assert metrics.final["private"].accuracy == 0.95
    assert metrics.headline == "private"


def test_a_torn_last_line_is_left_out_and_a_later_writer_is_not_confused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracked(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"round","round":4,"coh')
    assert [line.round for line in read_metrics(path).rounds] == [1, 2, 3]
    tracker = Tracker(path)
    tracker.resume(3)
    assert path.read_bytes() == whole
    tracker.round(**round_line(4, None))
    assert [line.round for line in read_metrics(path).rounds] == [1, 2, 3, 4]


@given(cut=st.integers(0, 4000))
def test_cut_anywhere_the_file_reads_as_a_prefix(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    tracked(path)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    rounds = [line.round for line in read_metrics(path).rounds]
    assert rounds == list(range(1, max(0, data.count(b"\n") - 1) + 1))


def test_a_broken_line_in_the_middle_is_refused_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracked(path)
    lines = path.read_text().splitlines(keepends=True)
    for broken in ("{\n", "[1]\n", '"x"\n', '{"no": "kind"}\n', '{"kind":"round","round":0}\n'):
        path.write_text("".join([lines[0], broken, *lines[2:]]))
        with pytest.raises(RunError, match=r"Line 2 of .* is not a metrics line"):
            read_metrics(path)
        with pytest.raises(RunError, match="Line 2"):
            Tracker(path).resume(1)


def test_unknown_keys_and_kinds_pass(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = tracked(path, rounds=0)
    tracker.round(**round_line(1, 0.6), novelty=[1, 2])
    with path.open("a") as stream:
        stream.write('{"kind":"weather","rain":true}\n')
    metrics = read_metrics(path)
    assert metrics.rounds[0].model_extra == {"novelty": [1, 2]}


def test_resume_drops_what_the_checkpoint_does_not_cover(tmp_path):
    folder = write_run(tmp_path)
    path = folder / "metrics.jsonl"
    Tracker(path).resume(2)
    metrics = read_metrics(path)
    assert [line.round for line in metrics.rounds] == [1, 2]
    assert metrics.central is None
    assert metrics.end is None
    assert metrics.start is not None
    Tracker(path).resume(0)
    assert read_metrics(path).rounds == []
    Tracker(tmp_path / "absent.jsonl").resume(3)
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_resumed_run_keeps_its_first_start_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = tracked(path, rounds=1)
    tracker.start(**start_line(clients=99))
    assert path.read_text().count('"start"') == 1
    assert read_metrics(path).start.clients == 20


def test_numbers_become_json_that_any_reader_takes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Tracker(path).round(round=1, train_loss=math.nan, bytes_up=np.int64(7), seconds={"total": np.float32(0.5)})
    body = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert body == {"kind": "round", "round": 1, "train_loss": None, "bytes_up": 7, "seconds": {"total": 0.5}}


def test_wrong_lines_are_refused_before_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = Tracker(path)
    with pytest.raises(RunError, match="has the kind 'roud': use one of start, round"):
        tracker.write({"kind": "roud"})
    with pytest.raises(RunError, match="wrong 'cohort'"):
        tracker.round(round=1, cohort="many")
    with pytest.raises(RunError, match="wrong 'round'"):
        tracker.round(cohort=3)
    assert not path.exists()


def test_every_line_is_synced(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr("coordinator.tracking.os.fsync", lambda fd: (synced.append(fd), real(fd)))
    tracked(tmp_path / "metrics.jsonl", rounds=2)
    assert len(synced) == 3


def test_a_full_disk_cuts_the_half_line_off_again(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    tracker = tracked(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("coordinator.tracking.os.fsync", full)
    with pytest.raises(RunError, match=r"No space left on device.*run again to resume"):
        tracker.round(**round_line(4, None))
    assert path.read_bytes() == before


def test_nothing_measured_gives_nothing():
    assert Metrics().final == {}
    assert Metrics().headline == ""


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")
