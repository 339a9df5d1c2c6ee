"""Whole runs over the in-memory grid: the real ServerApp's loop and the real ClientApp."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.federated import options, run_in_memory
from umbel.errors import ConfigError, FederationError, SiteError


@pytest.fixture
def flat(tiny_root, tmp_path):
    def make(**changes):
        return options(tiny_root, **changes) | {"run.directory": str(tmp_path / "runs")}

    return make


def adapter(path):
    return load_file(path / "adapter" / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_run_leaves_everything(flat):
    path = run_in_memory(flat(evaluate__central=True))
    for name in ("config.toml", "metrics.jsonl", "report.html", "adapter/adapter_config.json", "adapter/README.md"):
        assert (path / name).stat().st_size > 0
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["start", "round", "round", "round", "central", "end"]
    assert all(line["survivors"] == 4 for line in lines if line["kind"] == "round")
    assert lines[1]["train_loss"] > lines[3]["train_loss"]
    assert lines[4]["examples"] == sum(line["examples"] for line in lines if line["kind"] == "round")


def test_two_runs_are_bit_identical_and_seeds_matter(flat):
    first = adapter(run_in_memory(flat()))
    again = adapter(run_in_memory(flat(run__id="u")))
    other = adapter(run_in_memory(flat(run__id="v", run__seed=1)))
    assert same(first, again)
    assert not same(first, other)


def test_the_order_of_replies_does_not_matter(flat):
    from simulations.memory_grid import MemoryGrid

    def backwards(grid):
        pull = MemoryGrid.pull_messages
        grid.pull_messages = lambda ids: list(pull(grid, list(reversed(list(ids)))))

    first = adapter(run_in_memory(flat()))
    assert same(first, adapter(run_in_memory(flat(run__id="u"), grid_hook=backwards)))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("where", ["train", "line", "checkpoint"])
def test_a_killed_run_resumes_bit_identically(flat, monkeypatch, where):
    whole = adapter(run_in_memory(flat(run__id="whole")))
    count = {"n": 0}

    def bomb(original, at):
        def wrapped(*args, **kwargs):
            count["n"] += 1
            if count["n"] == at:
                raise Killed
            return original(*args, **kwargs)

        return wrapped

    from coordinator import federation
    from coordinator.tracking import Tracker

    with monkeypatch.context() as patch:
        fault = None
        if where == "train":

            def fault(node, message):
                if message.metadata.message_type == "train":
                    count["n"] += 1
                    if count["n"] == 7:
                        raise Killed
                return

        elif where == "line":
            patch.setattr(Tracker, "round", bomb(Tracker.round, 2))
        else:
            patch.setattr(federation, "save_checkpoint", bomb(federation.save_checkpoint, 2))
        with pytest.raises(Killed):
            run_in_memory(flat(), fault=fault)
    path = run_in_memory(flat())
    assert same(whole, adapter(path))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("round") for line in lines if line["kind"] == "round"] == [1, 2, 3]


def test_a_finished_run_is_left_alone(flat):
    path = run_in_memory(flat())
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"}
    run_in_memory(flat())
    assert before == {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"}


def test_missing_clients_are_tolerated_down_to_the_minimum(flat):
    def fault(node, message):
        return "lost" if message.metadata.message_type == "train" and node in (1, 2) else None

    path = run_in_memory(flat(federation__timeout=2.0), fault=fault)
    rounds = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()][1:-1]
    assert all((line["survivors"], line["missing"]) == (2, 2) for line in rounds)
    shutil.rmtree(path)
    with pytest.raises(FederationError, match=r"2 of 4 clients and federation.minimum is 3"):
        run_in_memory(flat(federation__timeout=2.0, federation__minimum=3), fault=fault)


def test_a_lying_client_is_counted_and_never_averaged(flat):
    from flwr.app import Message

    from client.client_app import app as client_app
    from umbel import wire

    honest = adapter(
        run_in_memory(
            flat(run__id="honest", federation__timeout=2.0),
            fault=lambda node, m: "lost" if m.metadata.message_type == "train" and node == 3 else None,
        )
    )

    def client(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 3:
            good = wire.unpack_train_reply(reply.content)
            bad = wire.TrainReply(good.spec_hash, good.update * np.float32(np.nan), good.metrics)
            return Message(wire.pack_train_reply(bad), reply_to=message)
        return reply

    path = run_in_memory(flat(), client=client)
    assert same(honest, adapter(path))
    rounds = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()][1:-1]
    assert all((line["survivors"], line["rejected"]) == (3, 1) for line in rounds)


@pytest.mark.parametrize("weights", ["uniform", "examples"])
def test_cohorts_and_weights_run(flat, weights):
    changes = {"federation.cohort": "fixed", "federation.cohort-size": 3, "federation.weights": weights}
    path = run_in_memory(flat() | changes)
    rounds = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()][1:-1]
    assert all(line["cohort"] == 3 for line in rounds)


def test_another_configuration_is_not_resumed(flat):
    run_in_memory(flat())
    with pytest.raises(ConfigError, match=r"train\.learning-rate"):
        run_in_memory(flat(train__learning_rate=0.5))


def test_a_site_refuses_a_population_that_does_not_fit(flat):
    from client.local_site import LocalSite
    from client.store import MemoryStore
    from umbel.config import RunConfig

    with pytest.raises(SiteError, match=r"federation\.clients"):
        LocalSite(RunConfig.from_flat(flat()), 0, 5, MemoryStore(), run="1")
