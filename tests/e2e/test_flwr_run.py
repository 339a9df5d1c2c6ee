"""Whole runs on real Flower processes: SuperLink, simulation runtime, ServerApp and Ray actors."""

import json
import random
import secrets
import time

import numpy as np
import pytest

from tests.e2e.real_run import PATIENCE, World, adapter, kill, kill_everything, nothing_left
from tests.federated import options, run_in_memory

pytestmark = [pytest.mark.flower, pytest.mark.slow]

ROUNDS = 8


def flat(tiny_root, root, **changes):
    return options(tiny_root, federation__rounds=ROUNDS, **changes) | {"run.directory": str(root / "runs")}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(app, tiny_root, tmp_path_factory):
    """One unbroken run."""
    world = World(app, tmp_path_factory.mktemp("whole"), secrets.token_hex(8))
    with nothing_left(world):
        done = world.run(flat(tiny_root, world.root, run__id="whole"))
    assert done.returncode == 0, done.stderr + world.log_tail()
    return world, done


def test_a_real_run_leaves_its_results(whole):
    world, done = whole
    folder, metrics = world.folder("whole"), world.metrics("whole")
    for name in ("config.toml", "metrics.jsonl", "report.html", "adapter/adapter_config.json", "adapter/README.md"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "error.json").exists()
    assert [line.round for line in metrics.rounds] == list(range(1, ROUNDS + 1))
    assert [(line.survivors, line.missing, line.rejected) for line in metrics.rounds] == [(4, 0, 0)] * ROUNDS
    assert metrics.end is not None
    assert metrics.rounds[-1].train_loss < metrics.rounds[0].train_loss
    assert str(folder / "report.html") in done.stdout
    assert "Traceback" not in done.stderr
    assert list((world.home / "flower" / "sessions").iterdir()) == []


def test_it_is_bit_identical_to_the_run_over_the_in_memory_grid(whole, tiny_root, tmp_path):
    world, _ = whole
    path = run_in_memory(flat(tiny_root, tmp_path, run__id="memory"))
    assert same(adapter(world.folder("whole")), adapter(path))
    other = run_in_memory(flat(tiny_root, tmp_path, run__id="other", run__seed=1))
    assert not same(adapter(world.folder("whole")), adapter(other))


def wait_for(happened, process, world):
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, world.log_tail()
        time.sleep(0.01)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_a_run_whose_every_process_is_killed_resumes_bit_identically(whole, world, tiny_root, seed):
    changed = flat(tiny_root, world.root, run__id="killed")
    process = world.start(changed)
    wait_for(lambda: world.metrics("killed").start, process, world)  # by then every process there will be is there
    victims = world.processes()
    commands = [" ".join(victim.cmdline()) for victim in victims if victim.is_running()]
    for what in ("umbel.cli.main", "flower-superlink", "flwr-simulation", "raylet"):
        assert any(what in command for command in commands), (what, commands)
    chance = random.Random(seed)
    finished = chance.randint(1, ROUNDS // 2)
    wait_for(lambda: len(world.metrics("killed").rounds) >= finished, process, world)
    usual = world.metrics("killed").rounds[-1].seconds["total"]
    time.sleep(chance.random() * usual)  # anywhere in the round that follows
    kill(victims)
    kill_everything(world)
    process.communicate()
    assert world.processes() == []
    before = world.metrics("killed")
    assert len(before.rounds) >= finished
    assert before.end is None

    with nothing_left(world):
        done = world.run(changed)
    assert done.returncode == 0, done.stderr + world.log_tail()
    assert "Resuming run killed" in done.stderr
    after = world.metrics("killed")
    assert [line.round for line in after.rounds] == list(range(1, ROUNDS + 1))
    assert after.end is not None
    assert same(adapter(whole[0].folder("whole")), adapter(world.folder("killed")))


def test_a_killed_ray_actor_ends_the_run_in_one_sentence_and_it_resumes(whole, probed_world, tiny_root):
    """Flower's simulation does not replace the actor; umbel run names what happened, and a second run goes on."""
    world = probed_world
    changed = flat(tiny_root, world.root, run__id="actor", federation__minimum=4)
    fault = {"kind": "train", "partition": 2, "nth": 3, "how": "actor"}
    (world.root / "faults.json").write_text(json.dumps([fault]))
    with nothing_left(world):
        done = world.run(changed)
    assert done.returncode == 75, done.stderr + world.log_tail()
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith(("round ", "Starting "))]
    assert sentence.startswith("A worker process of the simulation died in round 3")
    assert "run again with the same run.id to resume" in sentence
    assert "ActorDiedError" in sentence
    assert [line["dies"] for line in world.probed()].count(True) == 1
    assert [line.round for line in world.metrics("actor").rounds] == [1, 2]
    assert not (world.folder("actor") / "adapter").exists()

    with nothing_left(world):
        done = world.run(changed)
    assert done.returncode == 0, done.stderr + world.log_tail()
    assert "Resuming run actor" in done.stderr
    assert same(adapter(whole[0].folder("whole")), adapter(world.folder("actor")))
