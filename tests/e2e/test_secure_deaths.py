"""Secure aggregation on real Flower processes while clients are killed in the middle of the protocol."""

import json

import numpy as np
import pytest

from tests.e2e.real_run import adapter, nothing_left
from tests.federated import make_folder, options, run_in_memory

CLIENTS = 20
DEATHS = {"train": 3, "query.secagg_mask": 11, "query.secagg_unmask": 17}
"""Message type: the partition whose process is killed over it."""


def vector(folder):
    arrays = adapter(folder)
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


@pytest.mark.flower
@pytest.mark.slow
def test_the_survivors_sum_is_the_plain_collectors(probed_world, tiny_root, tmp_path):
    world = probed_world
    data = make_folder(tmp_path / "data", train=6 * CLIENTS)
    flat = options(tiny_root, federation__clients=CLIENTS, federation__rounds=1, federation__timeout=240.0) | {
        "run.directory": str(world.root / "runs"),
        "task.data": str(data),
        "secagg.clip": 5.0,
        "secagg.stage-timeout": 120.0,
    }
    faults = [{"kind": kind, "partition": who, "nth": 0, "how": "work"} for kind, who in DEATHS.items()]
    (world.root / "faults.json").write_text(json.dumps(faults))
    with nothing_left(world):
        done = world.run(flat | {"run.id": "secure", "secagg.enabled": True})
    assert done.returncode == 0, done.stderr + world.log_tail()

    # Each died once, over the message that it should, and nobody was asked twice: there was one attempt.
    noted = world.probed()
    assert {line["kind"]: line["partition"] for line in noted if line["dies"]} == DEATHS
    assert sum(line["dies"] for line in noted) == 3
    assert sum(line["kind"] == "train" for line in noted) == CLIENTS
    (line,) = world.metrics("secure").rounds
    alive = [stage.alive for stage in line.secagg.stages.values()]
    assert alive == [CLIENTS - 1, CLIENTS - 1, CLIENTS - 2, CLIENTS - 2, CLIENTS - 3, CLIENTS - 2]
    assert (line.cohort, line.survivors, line.rejected) == (CLIENTS, CLIENTS - 2, 3)
    killed = "probe: the client's process ended with status 9"  # SIGKILL
    assert line.reasons == {f"{stage}: {killed}": 1 for stage in ("keys", "masked", "unmasked")}

    def plain(name, dead):
        def fault(node, message):
            return "crash" if message.metadata.message_type == "train" and node in dead else None

        return vector(run_in_memory(flat | {"run.id": name}, fault=fault))

    secure = vector(world.folder("secure"))
    before_the_sum = {DEATHS["train"], DEATHS["query.secagg_mask"]}
    assert np.abs(secure - plain("survivors", before_the_sum)).max() < 1e-4
    # Whoever sent its masked vector is in the sum, though it died before the end; and the comparison can tell.
    for name, dead in (("all", set()), ("fewer", set(DEATHS.values()))):
        assert np.abs(secure - plain(name, dead)).max() > 1e-4
