import io
import json
import logging

import pytest

from umbel.errors import ConfigError, RunError
from umbel.logs import about, structured


@pytest.fixture
def logger(monkeypatch):
    monkeypatch.setenv("UMBEL_LOG", "json")
    stream = io.StringIO()
    assert structured(stream, "umbel-test")
    made = logging.getLogger("umbel-test")
    yield made, stream
    made.handlers.clear()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_carry_the_run_and_the_round_they_are_about(logger):
    made, stream = logger
    made.info("before")
    with about(run="r7"):
        made.info("start")
        with about(round_number=3):
            made.warning("%d replies were not used", 2)
        made.info("end")
    found = lines(stream)
    assert [line.get("run") for line in found] == [None, "r7", "r7", "r7"]
    assert [line.get("round") for line in found] == [None, None, 3, None]
    assert found[2]["message"] == "2 replies were not used"
    assert found[2]["level"] == "warning"
    assert found[0]["time"].endswith("+00:00")


def test_what_is_logged_cannot_forge_a_line(logger):
    made, stream = logger
    made.info("site says: %s", 'x"}\n{"level": "error", "message": "forged"}')
    (line,) = lines(stream)
    assert line["level"] == "info"


def test_a_failure_stands_in_its_line(logger):
    made, stream = logger
    try:
        raise ValueError("torn")
    except ValueError:
        made.exception("broke")
    (line,) = lines(stream)
    assert "ValueError: torn" in line["error"]


def test_twice_is_once(logger, monkeypatch):
    made, stream = logger
    structured(stream, "umbel-test")
    made.info("one")
    assert len(lines(stream)) == 1


def test_text_leaves_logs_alone_and_anything_else_is_refused(monkeypatch):
    before = list(logging.getLogger("flwr").handlers)
    for value in ("text", ""):
        monkeypatch.setenv("UMBEL_LOG", value)
        assert structured() is False
    assert logging.getLogger("flwr").handlers == before
    monkeypatch.setenv("UMBEL_LOG", "xml")
    with pytest.raises(ConfigError, match="set it to json or text"):
        structured()


def test_a_run_keeps_its_log_and_gives_the_file_back(logger, tmp_path):
    from umbel.logs import kept

    path = tmp_path / "log.jsonl"
    quiet = logging.getLogger("flwr.umbel")
    for name in ("one", "two"):
        with about(run=name), kept(path):
            quiet.warning("inside %s", name)
        quiet.warning("outside")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["run"], line["message"]) for line in found] == [("one", "inside one"), ("two", "inside two")]
    with pytest.raises(RunError, match="make room"), kept(tmp_path / "no" / "log"):
        pass


def test_without_the_switch_no_log_is_kept(tmp_path, monkeypatch):
    from umbel.logs import kept

    monkeypatch.delenv("UMBEL_LOG", raising=False)
    with kept(tmp_path / "log"):
        pass
    assert list(tmp_path.iterdir()) == []
