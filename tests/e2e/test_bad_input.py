"""What a run on bad input ends in: one sentence and the documented code, before any client is contacted."""

import json
import re
import shutil

import pytest
from flwr.app import Context, RecordDict

from client.client_app import app as client_app
from coordinator.server_app import app as server_app
from simulations.memory_grid import MemoryGrid
from tests.e2e.checkout import ROOT
from tests.e2e.real_run import nothing_left
from tests.federated import options, run_in_memory
from umbel.config import RunConfig
from umbel.errors import FederationError, UmbelError


def unknown_model(flat, tmp_path):
    return flat | {"model.name": str(tmp_path / "no-such-base")}


def unknown_hub_model(flat, tmp_path):
    return flat | {"model.name": "nobody/no-such-model"}


def base_without_weights(flat, tmp_path):
    shutil.copytree(flat["model.name"], tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    return flat | {"model.name": str(tmp_path / "base")}


def data_without_splits(flat, tmp_path):
    (tmp_path / "data").mkdir()
    return flat | {"task.data": str(tmp_path / "data")}


BAD = {
    unknown_model: (30, "no-such-base"),
    unknown_hub_model: (30, "nobody/no-such-model"),
    base_without_weights: (30, "weights"),
    data_without_splits: (20, "train.jsonl"),
}


def documented(code):
    return f"| [{code}](#{code}) |" in (ROOT / "docs" / "exit-codes.md").read_text()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_the_server_app_says_one_sentence_before_it_sends_a_message(tiny_root, tmp_path, bad):
    code, word = BAD[bad]
    flat = bad(options(tiny_root), tmp_path) | {"run.directory": str(tmp_path / "runs"), "run.id": "bad"}
    grid = MemoryGrid(client_app, 4, RunConfig.from_flat(flat).to_flat())
    context = Context(1, 0, {}, RecordDict(), RunConfig.from_flat(flat).to_flat())
    with pytest.raises(UmbelError) as caught:
        server_app(grid, context)
    assert grid.sent == []
    assert caught.value.exit_code == code
    assert documented(code)
    assert word in str(caught.value)
    assert one_sentence(str(caught.value))
    left = json.loads((tmp_path / "runs" / "bad" / "error.json").read_text())
    assert left == {"message": str(caught.value), "exit_code": code}
    assert not (tmp_path / "runs" / "bad" / "adapter").exists()
    assert not (tmp_path / "runs" / "bad" / "checkpoint").exists()


def one_sentence(text):
    return "\n" not in text and "Traceback" not in text and text[-1] in ".?" and not re.search(r"[.?] [A-Z]", text)


def test_what_a_failing_client_says_never_breaks_the_sentence(tiny_root, tmp_path):
    def client(message, context):
        if message.metadata.message_type == "train":
            raise RuntimeError("first line\nsecond line " + 600 * "x")
        return client_app(message, context)

    flat = options(tiny_root) | {"run.directory": str(tmp_path / "runs"), "run.id": "bad"}
    with pytest.raises(FederationError) as caught:
        run_in_memory(flat, client=client)
    assert documented(caught.value.exit_code)
    assert "\n" not in str(caught.value)
    assert "second line xxx" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.flower
@pytest.mark.slow
@pytest.mark.parametrize(
    "bad",
    [data_without_splits, *(pytest.param(bad, marks=pytest.mark.long) for bad in BAD if bad != data_without_splits)],
    ids=lambda bad: bad.__name__,
)
def test_a_real_run_ends_in_the_same_sentence_and_code(probed_world, tiny_root, tmp_path, bad):
    world, (code, word) = probed_world, BAD[bad]
    flat = bad(options(tiny_root), tmp_path) | {"run.directory": str(world.root / "runs"), "run.id": "bad"}
    with nothing_left(world):
        done = world.run(flat)
    assert done.returncode == code, done.stderr + world.log_tail()
    last = done.stderr.splitlines()[-1]
    assert word in last
    assert one_sentence(last)
    assert "Traceback" not in done.stderr
    assert world.probed() == []  # no client heard of it
    assert not world.folder("bad").exists()


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"federation.clients": 0}, 10, "federation.clients"),
        ({"federation.rouns": 3}, 10, "federation.rounds"),
        ({"federation.cohort": "fixed", "federation.cohort-size": 9}, 10, "population of 4"),
        ({"strategy.name": "fedt"}, 40, "fedt"),
    ],
)
@pytest.mark.slow
def test_options_that_cannot_be_are_refused_before_flower_starts(world, tiny_root, changes, code, word):
    done = world.run(options(tiny_root) | {"run.directory": str(world.root / "runs"), "run.id": "bad"} | changes)
    assert done.returncode == code
    assert documented(code)
    assert word in done.stderr
    assert one_sentence(done.stderr.strip())
    assert not (world.root / "runs").exists()
    assert not world.home.exists()
