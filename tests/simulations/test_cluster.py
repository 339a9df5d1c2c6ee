"""Two machines of a Ray cluster, both played on loopback; one of them dies in the middle of a run."""

import threading
import time

import numpy as np
import pytest

from coordinator.collect import PlainCollector
from coordinator.courier import Courier
from simulations.memory_grid import MemoryGrid
from tests.simulations.noop import answer
from tests.simulations.test_ray_grid import broadcast, cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NODES = 24


@pytest.fixture
def cluster(monkeypatch):
    """A head and a second machine, one CPU each; nothing of this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "4")
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 200 << 20, "include_dashboard": False},
    )
    second = made.add_node(num_cpus=1, object_store_memory=200 << 20)
    yield made, second
    ray.shutdown()
    made.shutdown()


def slow(message, context):
    """As the quick client, but a machine has time to die meanwhile."""
    time.sleep(0.15)
    return answer(message, context)


def test_a_machine_that_dies_in_the_middle_changes_nothing(cluster):
    from simulations.cluster import ray_session
    from simulations.ray_grid import RayGrid

    made, second = cluster
    expected = [
        PlainCollector(Courier(MemoryGrid(answer, NODES)), timeout=60.0).collect(cohort(NODES), broadcast(number))
        for number in (1, 2, 3)
    ]
    client = "tests.simulations.test_cluster:slow"
    with ray_session(made.address) as machines, RayGrid(NODES, {}, client=client, actors=2) as grid:
        assert len(machines) == 2
        collector = PlainCollector(Courier(grid), timeout=200.0)
        first = collector.collect(cohort(NODES), broadcast(1))
        killer = threading.Timer(0.5, lambda: made.remove_node(second, allow_graceful=False))
        killer.start()
        in_the_middle = collector.collect(cohort(NODES), broadcast(2))
        killer.join()
        afterwards = collector.collect(cohort(NODES), broadcast(3))
        assert grid.replaced >= 1
    for found, alone in zip((first, in_the_middle, afterwards), expected, strict=True):
        assert np.array_equal(found.mean, alone.mean)
        assert found.survivors == alone.survivors
        assert len(set(found.survivors)) == NODES
        assert (found.missing, found.rejections) == (0, 0)


def test_a_cluster_is_left_running(cluster):
    from simulations.cluster import ray_session

    made, _ = cluster
    for _ in range(2):
        with ray_session(made.address) as machines:
            assert sorted(machine.cpus for machine in machines) == [1.0, 1.0]
