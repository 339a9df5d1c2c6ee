import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from coordinator.tracking import read_metrics
from tests.coordinator.sample_run import write_run
from tests.umbel.cli.mini_app import write_app
from umbel.cli.flower import FlowerSession
from umbel.cli.main import main
from umbel.cli.run import Failure, _last_words, plan
from umbel.errors import ConfigError, FederationError, StrategyError


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A mini app as the working directory, and a home of its own."""
    folder = write_app(tmp_path / "app")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UMBEL_ROOT", raising=False)
    yield folder
    os.environ.pop("UMBEL_ROOT", None)


def started(monkeypatch):
    """Fails the test when anything of Flower is started."""
    monkeypatch.setattr(FlowerSession, "__enter__", lambda self: pytest.fail("something was started"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-c", "federation.rouns=3"], 10, "Option 'federation.rouns' is unknown: did you mean 'federation.rounds'?"),
        (["-c", "federation.rounds=many"], 10, "Option 'federation.rounds' has the value 'many'"),
        (["-c", "federation.clients=0"], 10, "Option 'federation.clients' has the value 0"),
        (["-c", 'federation.cohort="fixed" federation.cohort-size=9'], 10, "is larger than the population of 2"),
        (["-c", "strategy.name=fedt"], 40, "Strategy 'fedt' is unknown"),
        (["-c", "task.name=cats"], 10, "Option 'task.name' has the value 'cats'"),
        (["-c", "run.id=../x"], 10, "Option 'run.id' has the value '../x'"),
        (["-c", "nonsense"], 10, "is not an option"),
        (["--federation-size", "3", "-c", "federation.clients=2"], 10, "contradicts federation.clients=2"),
        (["--federation-size", "0"], 2, "Invalid value for '--federation-size'"),
        (["-c", "run.directory=/proc/nowhere"], 70, "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_starts(app, monkeypatch, capsys, arguments, code, sentence):
    started(monkeypatch)
    assert main(["run", *arguments]) == code
    text = capsys.readouterr().err
    assert sentence in text
    assert text.count("\n") == 1
    assert sorted(p.name for p in app.iterdir()) == ["mini", "pyproject.toml"]
    kept = [p for p in (app.parent / "home").rglob("*") if p.is_file() and p.parent.name != "calibrations"]
    assert kept == []  # a calibration that was computed may stay; nothing else begins


def test_another_option_is_refused_before_anything_starts(app, monkeypatch, capsys):
    run = write_run(app, finished=False)
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.safetensors").write_bytes(b"x")
    started(monkeypatch)
    assert main(["run", "-c", "run.id=one lora.rank=2"]) == 10
    assert "started with lora.rank = 8, not 2" in capsys.readouterr().err


def test_a_finished_run_is_printed_and_not_run_again(app, monkeypatch, capsys):
    write_run(app)
    before = (app / "runs" / "one" / "metrics.jsonl").read_bytes()
    started(monkeypatch)
    assert main(["run", "-c", "run.id=one"]) == 0
    captured = capsys.readouterr()
    assert "finished already" in captured.err
    assert "+23.0" in captured.out
    assert (app / "runs" / "one" / "metrics.jsonl").read_bytes() == before


def test_the_plan_names_every_run_and_passes_on_only_what_differs(app):
    first, second = plan([], None, None), plan(["-c"][:0], 5, None, prefix="demo-")
    assert first.config.run.id != second.config.run.id
    assert second.config.run.id.startswith("demo-")
    assert set(first.overrides) == {"run.id"}
    assert second.overrides["federation.clients"] == second.config.federation.clients == 5
    assert first.config.federation.rounds == 2  # of the app's pyproject.toml
    assert first.root == app
    with pytest.raises(StrategyError):
        plan(["strategy.name=none"], None, None)
    with pytest.raises(ConfigError):
        plan([], 3, app / "absent" / ".." / ".." / "app", prefix="*")


def test_a_resumed_run_takes_the_options_it_was_started_with(app):
    assert plan(["run.id=one"], None, None).config.train.batch_size == 64  # there is no such run yet
    run = write_run(app, finished=False, **{"train.batch-size": 5})
    assert plan(["run.id=one"], None, None).config.train.batch_size == 64  # it has not finished a round
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.safetensors").write_bytes(b"x")
    resumed = plan(["run.id=one"], None, None)
    assert resumed.config.train.batch_size == 5
    assert resumed.overrides["federation.clients"] == 20
    assert plan(["run.id=one train.batch-size=6"], None, None).config.train.batch_size == 6  # refused on opening


def test_a_failure_carries_the_coordinators_code():
    failure = Failure("The data is gone: bring it back.", 20)
    assert (str(failure), failure.exit_code) == ("The data is gone: bring it back.", 20)
    assert Failure.exit_code == 70


def test_last_words(tmp_path):
    log = tmp_path / "log"
    assert _last_words(log) == ""
    log.write_text("fine\n\x1b[91mValueError: a\x07 defect\x1b[0m\nclosing\n")
    assert _last_words(log) == "[91mValueError: a defect[0m"
    log.write_bytes(b"\xff" * 10 + b"Error " + b"x" * 900)
    assert len(_last_words(log)) == 200


def test_a_superlink_that_does_not_start_is_one_sentence(app, monkeypatch):
    monkeypatch.setattr("umbel.cli.flower._answers", lambda superlink, port: False)
    session = FlowerSession(app, app, "x")
    with pytest.raises(FederationError, match=r"does not start: its log is .*x\.log"), session:
        pytest.fail("entered")
    assert not session.folder.exists()
    assert mine(session.token) == []


def test_missing_programs_are_one_sentence(app, tmp_path, monkeypatch):
    monkeypatch.setattr("umbel.cli.flower.sys.executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(FederationError, match="cannot be started"), FlowerSession(app, app, "x"):
        pytest.fail("entered")


def mine(token):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("UMBEL_SESSION") == token:
                found.append(process.name())
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def no_leftovers(monkeypatch):
    """Whatever a run started must be gone after it: every child carries this mark."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("UMBEL_TEST_MARK", mark)

    def left():
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("UMBEL_TEST_MARK") == mark:
                    found.append(process.name())
            except (psutil.Error, OSError):
                continue
        return found

    return left


@pytest.mark.slow
@pytest.mark.flower
def test_a_run_to_its_end_under_flower(app, capsys, no_leftovers):
    assert main(["run", "-c", "run.id=one", "--federation-size", "3"]) == 0
    captured = capsys.readouterr()
    assert "round 2/2, accuracy 70.0%, train loss 1, 3/3 clients" in captured.err
    assert str(app / "runs" / "one" / "metrics.jsonl") in captured.out
    assert read_metrics(app / "runs" / "one" / "metrics.jsonl").end is not None
    assert no_leftovers() == []
    assert list((app.parent / "home" / "flower" / "sessions").iterdir()) == []
    assert main(["run", "-c", "run.id=one"]) == 0
    assert "finished already" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.flower
def test_the_coordinators_sentence_and_code_come_through(app, capsys, no_leftovers):
    assert main(["run", "-c", "run.id=one run.seed=1"]) == 20
    assert capsys.readouterr().err.endswith("The data is gone: bring it back.\n")
    assert not (app / "runs" / "one").exists()  # nothing had happened in it
    assert no_leftovers() == []


@pytest.mark.slow
@pytest.mark.flower
def test_a_defect_of_the_server_app_is_one_sentence_with_its_log(app, capsys, no_leftovers):
    assert main(["run", "-c", "run.id=one run.seed=2"]) == 70
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("The run ended without a result (")
    assert "a defect of the ServerApp" in text
    assert Path(text.rsplit(" ", 1)[1].rstrip(".")).is_file()
    assert no_leftovers() == []


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_ctrl_c_in_a_round_ends_everything_and_keeps_the_run(app, no_leftovers, number):
    # Shells let what they start in the background ignore SIGINT, and children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from umbel.cli.main import run; run()"
    command = [sys.executable, "-c", code, "run", "-c", "run.id=one run.seed=3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = app / "runs" / "one" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and read_metrics(metrics).rounds):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "resume it with 'umbel run -c run.id=one'" in text
    assert "Traceback" not in text
    assert no_leftovers() == []
    assert len(read_metrics(metrics).rounds) == 1


@pytest.mark.slow
@pytest.mark.flower
def test_a_killed_wrapper_is_cleaned_up_by_the_next_session(app, no_leftovers):
    code = "from umbel.cli.main import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "-c", "run.id=one run.seed=3"], stderr=subprocess.DEVNULL
    )
    sessions = app.parent / "home" / "flower" / "sessions"
    deadline = time.monotonic() + 120
    while not list(sessions.glob("*/overrides.toml")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert no_leftovers() != []
    note = json.loads(next(sessions.glob("*/session.json")).read_text())
    assert note["pid"] == process.pid
    with FlowerSession(app, app, "next") as session:
        assert not (sessions / note["token"]).exists()
        assert mine(note["token"]) == []
        assert mine(session.token) != []
    assert no_leftovers() == []
