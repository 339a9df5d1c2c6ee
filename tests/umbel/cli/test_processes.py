import json
import os
import secrets
import subprocess
import sys

import psutil
import pytest

from umbel.cli import flower
from umbel.cli.processes import TOKEN, family, stop_family

# The child says when it is ready; a grandchild in a session of its own, and one without the token beside it.
_TREE = """
import os, subprocess, sys, time
bare = {k: v for k, v in os.environ.items() if k != "UMBEL_SESSION"}
sleep = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
one = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.PIPE)
two = subprocess.Popen(sleep, env=bare, stdout=subprocess.PIPE)
one.stdout.read(1), two.stdout.read(1)
print(one.pid, two.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def tree():
    token = secrets.token_hex(8)
    child = subprocess.Popen(
        [sys.executable, "-c", _TREE], env={**os.environ, TOKEN: token}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    pids = {child.pid, *map(int, child.stdout.readline().split())}
    yield token, child, pids
    for pid in pids:
        try:
            psutil.Process(pid).kill()
        except psutil.Error:
            continue
    child.wait()


def test_the_family_is_found_across_sessions_and_without_the_token(tree):
    token, _, pids = tree
    assert {process.pid for process in family(token)} == pids
    assert family("another") == []
    assert os.getpid() not in {process.pid for process in family(token)}


def test_stopping_ends_the_family_and_nobody_else(tree):
    token, child, pids = tree
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stop_family(token)
    child.wait(timeout=10)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
    assert bystander.poll() is None
    bystander.communicate(b"\n")
    stop_family(token)  # nothing is left: nothing happens


def test_whoever_ignores_sigterm_is_killed():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, TOKEN: "stubborn"}, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.read(1)
    stop_family("stubborn", grace=0.2)
    assert not psutil.pid_exists(child.pid)
    child.wait(timeout=10)


def test_a_session_whose_owner_was_killed_is_swept_and_others_stay(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    token, child, _ = tree
    me = psutil.Process()
    notes = {
        token: {"pid": 2**22 + 1, "created": 1.0, "token": token},
        "living": {"pid": me.pid, "created": me.create_time(), "token": "living"},
        "torn": None,
    }
    for name, body in notes.items():
        folder = flower.flower_home() / "sessions" / name
        folder.mkdir(parents=True)
        (folder / "session.json").write_text(json.dumps(body) if body else "{")
    flower.sweep()
    assert not psutil.pid_exists(child.pid)
    assert sorted(p.name for p in (flower.flower_home() / "sessions").iterdir()) == ["living", "torn"]


def test_a_reused_process_id_is_not_taken_for_the_owner(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    folder = flower.flower_home() / "sessions" / "old"
    folder.mkdir(parents=True)
    (folder / "session.json").write_text(json.dumps({"pid": os.getpid(), "created": 1.0, "token": "old"}))
    flower.sweep()
    assert not folder.exists()
