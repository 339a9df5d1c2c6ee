"""What ``umbel site`` says of a folder that somebody damaged, emptied or closed: one sentence, never a defect."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from client.agent.agent import Agent
from client.agent.audit_log import AuditLog, read_lines, segments
from client.agent.books import last_anchor
from mllm.load import load_base
from tests.client.agent.houses import call_for, enrol, make_house, order_for, policy_for
from umbel.cli.site import app
from umbel.errors import SiteError

IN_STEPS = {"privacy__unit": "example", "privacy__place": "step"}


@pytest.fixture
def house(agent_root, tmp_path):
    made = make_house(tmp_path / "site", policy_for(agent_root, runs__privacy=["step"]))
    enrol([made])
    return made


@pytest.fixture
def spent(house, agent_root):
    """A site that has trained once and paid for it."""
    agent = Agent(house)
    agent.train(call_for(agent_root, **IN_STEPS), order_for(agent_root))
    agent.close()
    return house


def site(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments):
    found = site(*arguments)
    assert isinstance(found.exception, SiteError), (found.output, found.exception)
    assert "\n" not in str(found.exception)
    return str(found.exception)


def served(monkeypatch, *arguments):
    """``umbel site serve`` that ends at once."""
    ended = threading.Event()
    ended.set()
    monkeypatch.setattr("umbel.cli.site.threading", SimpleNamespace(Event=lambda: ended))
    monkeypatch.setattr("umbel.cli.site.signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=15, SIGINT=2))
    monkeypatch.setattr("umbel.logs.structured", lambda: None)
    return site("serve", *arguments)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a new log"])
def test_a_log_that_was_deleted_is_noticed(spent, left):
    shutil.rmtree(spent.log)
    if left == "an empty folder":
        spent.log.mkdir()
    if left == "a new log":
        AuditLog(spent.log, spent.identity()).append("approved", person="somebody")
    for command in (("check", "--no-load"), ("serve",)):
        said = refusal(*command, spent.folder)
        assert re.search(r"holds \d+ lines and the log .* tells of none of them", said)
        assert "restore it from the backup" in said
    reason = "the log was deleted" if left == "nothing" else "tells of none of them"
    assert reason in refusal("log", "verify", spent.folder)
    assert spent.log.exists() is (left != "nothing"), "nobody begins a new one"


def test_a_loss_is_accepted_once_and_in_the_log(spent, monkeypatch):
    known = last_anchor(spent.log)
    shutil.rmtree(spent.log)
    monkeypatch.setattr("getpass.getuser", lambda: "Dr. A")
    done = served(monkeypatch, spent.folder, "--accept-loss")
    assert done.exit_code == 0, (done.output, done.exception)
    first = next(iter(read_lines(spent.log)))
    assert (first["kind"], first["loss"], first["person"]) == ("accepted", "log", "Dr. A")
    assert first["ledger"] == known.record()
    assert site("check", "--no-load", spent.folder).exit_code == 0
    assert site("log", "verify", spent.folder).exit_code == 0
    assert "is not lost: leave --accept-loss out" in refusal("serve", spent.folder, "--accept-loss")


def test_a_site_that_has_spent_nothing_may_begin_anew(house, monkeypatch):
    assert served(monkeypatch, house.folder).exit_code == 0
    shutil.rmtree(house.log)
    assert "begin with the first start" in site("check", "--no-load", house.folder).output
    assert served(monkeypatch, house.folder).exit_code == 0


@pytest.mark.parametrize(
    "ledger", ['{"head":"x"}', '{"lines":"3","head":"x"}', "[]", "7", '{"lines":-1,"head":"x"}', '{"lines":1e400}']
)
def test_an_edited_ledger_field_is_an_altered_log(spent, ledger):
    path = segments(spent.log)[0]
    data = path.read_bytes()
    path.write_bytes(re.sub(rb'"ledger":\{[^}]*\}', f'"ledger":{ledger}'.encode(), data))
    assert path.read_bytes() != data
    assert "does not carry this site's signature" in refusal("check", "--no-load", spent.folder)
    assert "does not carry this site's signature" in refusal("log", "verify", spent.folder)
    assert "was altered" in refusal("serve", spent.folder)


def test_even_a_signed_line_without_a_length_is_a_sentence(house):
    AuditLog(house.log, house.identity()).append("started", ledger={"head": "x"})
    with pytest.raises(SiteError, match="does not say how long the ledger was"):
        last_anchor(house.log)
    assert "how long the ledger was" in refusal("check", "--no-load", house.folder)


@pytest.mark.parametrize("content", [b"", b"two", b"-3", b"1.5", b"\xff"])
def test_a_damaged_roster_version_is_a_sentence(house, content):
    assert site("check", "--no-load", house.folder).exit_code == 0
    (house.state / "roster-version").write_bytes(content)
    said = refusal("check", "--no-load", house.folder)
    assert "roster-version does not hold the version of the newest roster" in said
    assert (house.state / "roster-version").read_bytes() == content


@pytest.mark.parametrize("there", [False, True])
def test_a_gpu_that_is_allowed_and_not_there_is_said(agent_root, tmp_path, monkeypatch, caplog, there):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda _: None)
    made = make_house(tmp_path / "site", policy_for(agent_root, limits__gpu=True))
    enrol([made])
    text = site("check", made.folder).output
    assert ("warning: site.toml allows a GPU (limits.gpu) and torch finds none" in text) is not there
    assert served(monkeypatch, made.folder).exit_code == 0
    assert any("torch finds none" in record.message for record in caplog.records) is not there


def test_check_loads_models_where_the_site_would(house, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    seen = []
    load = load_base
    monkeypatch.setattr(
        "mllm.load.load_base", lambda name: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) or load(name)
    )
    assert site("check", house.folder).exit_code == 0
    assert seen == [""], "without limits.gpu the process never sees a GPU"


COMMANDS = (
    ("site", "check", "--no-load", "{}"),
    ("site", "ledger", "{}"),
    ("site", "log", "--site", "{}"),
    ("site", "log", "verify", "{}"),
    ("site", "serve", "{}"),
)
OTHER_USER = """
import contextlib, io, json, os, sys
from umbel.cli.main import main
import client.agent.checks, client.agent.server, client.agent.desk  # noqa: F401 (as root: the other may not read them)
folder, commands = sys.argv[1], json.loads(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for command in commands:
    code, said = -1, io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main([part.format(folder) for part in command])
    print(json.dumps([code, " ".join(said.getvalue().split())]))
"""


@pytest.fixture
def open_folder(agent_root):
    """A site that has a log and a ledger, below a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        made = make_house(Path(root) / "site", policy_for(agent_root))
        enrol([made])
        Agent(made).close()
        yield made


def as_another(folder):
    """What each command answers a user to whom the folder does not belong: exit code and sentence."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER_USER, str(folder), json.dumps(COMMANDS)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": "/tmp", "COLUMNS": "4000"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.mark.parametrize(("closed", "mode"), [(".", 0o000), ("state", 0o700), ("state/log", 0o000)])
def test_another_user_is_told_so_in_a_sentence(open_folder, closed, mode):
    if os.geteuid() != 0 and mode != 0o000:
        pytest.skip("only root can play another user")
    path = open_folder.folder / closed
    if os.geteuid() == 0:
        for part in (open_folder.folder, *open_folder.folder.rglob("*")):
            os.chown(part, 65534, 65534)  # all but what is closed
        os.chown(path, 0, 0)
    path.chmod(mode)
    try:
        found = as_another(open_folder.folder)
    finally:
        path.chmod(0o700)
    assert len(found) == len(COMMANDS)
    for command, (code, said) in zip(COMMANDS, found, strict=True):
        if closed == "state/log" and command[1] == "ledger":
            continue  # it does not need the log
        assert code >= 2, (command, code, said)
        assert "failed unexpectedly" not in said
        assert "altered" not in said, "who may not read a log must not raise an alarm"
        assert re.search(r"cannot be read|is not open to this user|is not readable", said), (command, said)
