"""``flwr run`` in Flower's simulation packs many devices into a message, and ends as RayGrid does."""

import secrets

import numpy as np
import pytest

from simulations.lanes import effective_lanes
from tests.e2e.real_run import World, adapter, nothing_left
from tests.federated import options
from tests.simulations.runs import run_on_ray

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def test_the_same_seed_gives_the_same_adapter_in_flower_and_on_ray(app, tiny_root, tmp_path):
    from simulations.cluster import ray_session

    changes = {"federation.clients": 10, "federation.lanes": 32, "federation.rounds": 2, "run.directory": "runs"}
    world = World(app, tmp_path / "flower", secrets.token_hex(8))
    world.root.mkdir()
    flat = options(tiny_root) | changes | {"run.directory": str(world.root / "runs"), "run.id": "packed"}
    with nothing_left(world):
        done = world.run(flat)
    assert done.returncode == 0, done.stderr + world.log_tail()
    lanes = effective_lanes(32, 10)
    assert lanes == 8
    logs = "".join(path.read_text(errors="replace") for path in (world.home / "flower" / "logs").glob("*.log"))
    assert f"10 devices share messages, at most {lanes} of them a batch" in logs
    with ray_session(cpus=2, gpus=0, store_mb=300):
        path, _ = run_on_ray(flat | {"run.directory": str(tmp_path / "ray")}, actors=2, lanes=lanes)
    ours, flowers = adapter(path), adapter(world.folder("packed"))
    assert ours.keys() == flowers.keys()
    assert all(np.array_equal(ours[name], flowers[name]) for name in ours)
