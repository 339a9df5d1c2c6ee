"""The agent's own answers: what files of a task or a model may not do, and what a call may not say."""

import contextlib
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import pytest

from client.agent.agent import Agent, Call
from client.agent.audit_log import read_lines
from client.agent.bundle import Bundle, read_bundle
from client.agent.watch import Watch
from mllm.warm import warm_model
from tests.client.agent.houses import COORDINATOR, enrol, flat_options, make_house, policy_for
from umbel.config import RunConfig
from umbel.errors import ConfigError, DataError, ModelError, SiteError
from umbel.wire import TrainOrder


@pytest.fixture
def asked(agent_root, tmp_path):
    """An agent over a copy of data and base that a test may spoil, and a call to it."""
    os.symlink(agent_root / "base", tmp_path / "base")
    shutil.copytree(agent_root / "data", tmp_path / "data")

    def make(bundle=Bundle(), run="1", alive=lambda: True, policy=None, **changes):  # noqa: B008
        house = make_house(tmp_path / "site", policy_for(tmp_path, **(policy or {})))
        enrol([house])
        flat = flat_options(tmp_path, **{"run__id": "auto", **changes})
        call = Call(COORDINATOR, "test", run, json.dumps(flat), bundle, Watch(alive))
        return Agent(house), call

    make.root = tmp_path
    return make


def order(root):
    warm = warm_model(RunConfig.from_flat(flat_options(root)))
    return TrainOrder(1, warm.tuned.spec.hash, warm.initial)


def refused(agent):
    return [line for line in read_lines(agent.house.log) if line["kind"] == "refused"]


def spoil(root, line):
    with (root / "data" / "train.jsonl").open("a") as stream:
        stream.write(json.dumps({"question": "q", "answer": "a", **line}) + "\n")


def bomb(path, side):
    """A small PNG that declares many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "link.png"])
def test_a_line_that_leads_out_of_the_folder_is_refused(asked, agent_root, name):
    agent, call = asked()
    shutil.copy(agent_root / "data" / "train0.png", asked.root / "outside.png")
    os.symlink(asked.root / "outside.png", asked.root / "data" / "link.png")
    spoil(asked.root, {"image": name})
    with pytest.raises(DataError, match="outside the data folder"):
        agent.train(call, order(asked.root))
    assert "outside the data folder" in refused(agent)[0]["reason"]


@pytest.mark.parametrize(
    ("side", "said"),
    [(10_000, "declares 10000 x 10000 pixels, expected at most 40000000"), (60_000, "3600000000 pixels")],
)
def test_an_image_bomb_is_refused_by_its_header(asked, side, said):
    agent, call = asked()
    bomb(asked.root / "data" / "bomb.png", side)
    spoil(asked.root, {"image": "bomb.png"})
    with pytest.raises(DataError, match=said):
        agent.train(call, order(asked.root))
    assert len(refused(agent)) == 1


class Exploit:
    def __reduce__(self):
        return (os.system, ("touch exploited",))


def test_a_pickled_model_is_never_opened(asked, agent_root, monkeypatch):
    monkeypatch.chdir(asked.root)
    (asked.root / "base").unlink()
    shutil.copytree(agent_root / "base", asked.root / "base")
    for path in (asked.root / "base").glob("*.safetensors"):
        path.unlink()
    (asked.root / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit()))
    agent, call = asked()
    with pytest.raises(ModelError):
        agent.describe(call)
    assert not (asked.root / "exploited").exists()
    assert refused(agent)[0]["error"] == "ModelError"


def test_code_beside_a_model_is_never_run(asked, agent_root, monkeypatch):
    monkeypatch.chdir(asked.root)
    (asked.root / "base").unlink()
    shutil.copytree(agent_root / "base", asked.root / "base")
    config = asked.root / "base" / "config.json"
    body = json.loads(config.read_text())
    body |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}}
    config.write_text(json.dumps(body))
    (asked.root / "base" / "evil.py").write_text("open('exploited', 'w')\nclass Evil: pass\n")
    agent, call = asked()
    with pytest.raises(ModelError):
        agent.describe(call)
    assert not (asked.root / "exploited").exists()


def test_another_model_under_the_same_name_is_refused(asked):
    agent, call = asked(policy={"model": [{"name": str(asked.root / "base"), "hash": "0" * 64}]})
    with pytest.raises(ModelError, match="not the one that its policy names by hash"):
        agent.describe(call)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model__name": "elsewhere"}, SiteError, "model 'elsewhere'"),
        ({"task__data": "elsewhere"}, SiteError, "data 'elsewhere'"),
        ({"strategy__name": "ffa-lora"}, SiteError, "strategy 'ffa-lora'"),
        ({"lora__rank": 0}, ConfigError, "lora.rank"),
        ({"bundle": Bundle("d" * 64, True)}, SiteError, "carries code"),
        ({"run": "../../x"}, SiteError, "cannot name a run"),
        ({"run__id": "x" * 64, "task__minimum": 400}, DataError, "task.minimum is 400"),
    ],
)
def test_what_is_refused_stands_in_the_log(asked, changes, error, said):
    agent, call = asked(**changes)
    with pytest.raises(error, match=said):
        agent.train(call, order(asked.root))
    lines = list(read_lines(agent.house.log))
    assert [line["kind"] for line in lines] == ["started", "asked", "refused"]
    assert lines[2]["reason"]
    assert agent.counts.refused == 1


def test_a_defect_is_told_to_nobody_but_noted(asked, monkeypatch):
    agent, call = asked()
    monkeypatch.setattr("client.agent.agent.LocalSite", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.describe(call)
    assert list(read_lines(agent.house.log))[-1]["error"] == "ZeroDivisionError"


def test_nobody_waits_behind_work_for_ever(asked):
    agent, call = asked(alive=lambda: False)
    with agent._work, pytest.raises(SiteError, match="went away"):
        agent.describe(call)


def test_an_answer_that_cannot_be_logged_does_not_leave(asked, monkeypatch):
    agent, call = asked()
    append = agent.log.append

    def full(kind, **facts):
        if kind == "left":
            raise SiteError("The log cannot be written.")
        return append(kind, **facts)

    monkeypatch.setattr(agent.log, "append", full)
    with pytest.raises(SiteError, match="cannot be written"):
        agent.train(call, order(asked.root))


def test_a_dry_run_loads_and_spends_nothing(asked, monkeypatch):
    agent, call = asked(model__name="elsewhere", privacy__unit="example")
    monkeypatch.setattr("client.agent.models.warm_model", lambda *_: pytest.fail("a model was loaded"))
    found = agent.dry_run(call)
    assert any("model 'elsewhere'" in sentence for sentence in found)
    assert [line["kind"] for line in read_lines(agent.house.log)] == ["started", "asked", "left"]


def test_a_site_may_answer_no_dry_runs(asked):
    agent, call = asked(policy={"dry_run": False})
    with pytest.raises(SiteError, match="answers no dry runs"):
        agent.dry_run(call)


def test_a_limit_of_memory_ends_the_work():
    Watch(lambda: True, memory=1 << 20).check(True)
    with pytest.raises(SiteError, match=r"this site allows 1: it was ended"):
        Watch(lambda: True, memory=1).check(True)


def test_paid_work_is_finished_though_nobody_waits():
    Watch(lambda: False, deadline=0.0).check(True)
    with pytest.raises(SiteError, match="time for this call is over"):
        Watch(lambda: True, deadline=0.0).check(False)


class TestBundle:
    def test_a_folder_and_its_archive_have_one_hash(self, tmp_path):
        import zipfile

        folder = tmp_path / "app"
        folder.mkdir()
        (folder / "pyproject.toml").write_text("[project]")
        (folder / "README.md").write_text("# run")
        with zipfile.ZipFile(tmp_path / "app.fab", "w") as archive:
            archive.writestr("README.md", "# run")
            archive.writestr("pyproject.toml", "[project]")
            archive.writestr(".info/CONTENT", "list")
        assert read_bundle(folder) == read_bundle(tmp_path / "app.fab")
        assert not read_bundle(folder).code

    @pytest.mark.parametrize("name", ["client/app.py", "x.so", "x.pyc", "x.PY", "run.sh", "x", "x.pkl", "x.bin"])
    def test_whatever_is_not_text_that_we_know_is_code(self, tmp_path, name):
        (tmp_path / "pyproject.toml").write_text("[project]")
        before = read_bundle(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
        after = read_bundle(tmp_path)
        assert (before.code, after.code) == (False, True)
        assert before.hash != after.hash

    def test_what_is_no_bundle_is_refused(self, tmp_path):
        with pytest.raises(SiteError, match="is no bundle"):
            read_bundle(tmp_path / "missing")
        (tmp_path / "text").write_text("no zip")
        with pytest.raises(SiteError, match="is no bundle"):
            read_bundle(tmp_path / "text")

    def test_a_bundle_that_was_cut_or_altered_is_refused_in_a_sentence(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "whole.fab", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.md", "# run " * 500)
        whole = (tmp_path / "whole.fab").read_bytes()
        altered = tmp_path / "altered.fab"
        for place in range(30, len(whole)):
            for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
                altered.write_bytes(content)
                with contextlib.suppress(SiteError):  # an altered comment or time is no damage
                    read_bundle(altered)
        altered.write_bytes(whole[:30] + b"README.md" + b"\xff" * 20 + whole[59:])
        with pytest.raises(SiteError, match="is no bundle"):
            read_bundle(altered)


def test_the_courier_finds_the_bundle_that_it_runs_from(tmp_path, monkeypatch):
    from client.agent.bundle import running_bundle

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert running_bundle() == Bundle()
    app = tmp_path / "apps" / "umbel.umbel.0.1.0.12345678"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text("[project]")
    monkeypatch.syspath_prepend(str(app))
    assert running_bundle() == read_bundle(app)
    assert len(running_bundle().hash) == 64
