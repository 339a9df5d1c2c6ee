"""RayGrid against the in-memory grid: same replies, same sums, whatever dies."""

import numpy as np
import pytest

from coordinator.collect import Broadcast, PlainCollector
from coordinator.courier import Courier
from coordinator.population import Participant
from simulations.memory_grid import MemoryGrid
from simulations.world import World, WorldRules
from tests.simulations.noop import SPEC, answer, update_of
from umbel.errors import ConfigError
from umbel.wire import MessageType, TrainOrder, pack_train_order, unpack_train_reply

pytestmark = pytest.mark.slow
NODES = 11


def cohort(nodes=NODES):
    return [Participant(node, f"{node - 1:06d}", 4) for node in range(1, nodes + 1)]


def broadcast(round_number=1):
    adapter = np.linspace(-1, 1, SPEC.size).astype(np.float32)
    return Broadcast(round_number, SPEC, lambda _rank: (SPEC, adapter), SPEC)


def collect(grid, nodes=NODES, round_number=1, **options):
    return PlainCollector(Courier(grid), timeout=60.0, **options).collect(cohort(nodes), broadcast(round_number))


class Unfolded:
    """The same grid without partial sums."""

    def __init__(self, grid):
        self.push_messages, self.pull_messages = grid.push_messages, grid.pull_messages


@pytest.fixture
def ray_grid(ray_two):
    from simulations.ray_grid import RayGrid

    made = []

    def make(client="tests.simulations.noop:answer", nodes=NODES, config=None, **options):
        made.append(RayGrid(nodes, config or {}, client=client, **options))
        return made[-1]

    yield make
    for grid in made:
        grid.close()


@pytest.mark.parametrize("by_examples", [False, True])
def test_sums_equal_those_of_one_process(ray_grid, by_examples):
    config = {"liar": 3, "stranger": 4, "broken": 5}
    options = {"by_examples": by_examples}
    alone = collect(MemoryGrid(answer, NODES, config), **options)
    grid = ray_grid(config=config, actors=2)
    for way in (grid, Unfolded(grid)):
        found = collect(way, **options)
        assert np.array_equal(found.mean, alone.mean)
        assert found.survivors == alone.survivors
        assert len(found.survivors) == NODES - 3
        assert found.rejected.keys() == alone.rejected.keys()
        assert found.rejections == 3
        assert (found.missing, found.bytes_up, found.bytes_down) == (0, alone.bytes_up, alone.bytes_down)
        assert found.metrics == pytest.approx(alone.metrics)


def test_a_device_remembers_whichever_actor_plays_it(ray_grid):
    grid = ray_grid(actors=2, lanes=1)
    for round_number in (1, 2, 3):
        records = pack_train_order(TrainOrder(round_number, SPEC.hash, SPEC.zeros()))
        orders = [(node, records.copy) for node in (1, 2)]
        for reply in Courier(grid).ask(MessageType.TRAIN, orders, timeout=30.0, group=str(round_number)):
            assert unpack_train_reply(reply.records).metrics["asked"] == round_number


def test_a_broadcast_is_stored_once(ray_grid, monkeypatch):
    import ray

    grid = ray_grid(actors=2)
    puts = []
    real = ray.put
    monkeypatch.setattr(ray, "put", lambda value, **kw: puts.append(type(value).__name__) or real(value, **kw))
    collect(grid)
    assert puts == ["RecordDict"]  # the plan of the sum is small enough to travel with each order


def test_killed_actors_count_nobody_twice(ray_grid, tmp_path):
    for partition in (2, 9):
        (tmp_path / f"{partition}-1").touch()
    grid = ray_grid("tests.simulations.noop:deadly", config={"kills": str(tmp_path)}, actors=2)
    found = collect(grid)
    assert not list(tmp_path.iterdir())  # both did kill
    assert grid.replaced == 2
    assert len(found.survivors) == len(set(found.survivors)) == NODES
    assert np.array_equal(found.mean, collect(MemoryGrid(answer, NODES)).mean)


def test_a_device_that_always_kills_is_given_up_alone(ray_grid, tmp_path):
    (tmp_path / "always-1").touch()
    grid = ray_grid("tests.simulations.noop:deadly", nodes=4, config={"kills": str(tmp_path)}, actors=1)
    found = collect(grid, nodes=4)
    assert found.survivors == ["000000", "000002", "000003"]
    assert found.rejections == 1
    expected = np.mean([update_of(p, 1).astype(np.float64) for p in (0, 2, 3)], axis=0) + broadcast().adapter(4)[1]
    assert found.mean == pytest.approx(expected, abs=1e-6)


def test_lost_devices_are_refused_at_once_and_the_rest_trains(ray_grid):
    from simulations.devices import draw_fleet

    def world():
        return World(draw_fleet("phones", NODES, 0), WorldRules(dropout=0.5), 3)

    found = collect(ray_grid(actors=1, world=world()))
    again = collect(Unfolded(ray_grid(actors=2, world=world())))
    assert 0 < len(found.survivors) < NODES
    assert found.rejected == {"the device dropped out": NODES - len(found.survivors)}
    assert np.array_equal(found.mean, again.mean)
    assert found.survivors == again.survivors


def test_a_reply_that_comes_twice_counts_once(ray_grid):
    from simulations.devices import draw_fleet

    world = World(draw_fleet("phones", NODES, 0), WorldRules(twice=1.0), 3)
    found = collect(Unfolded(ray_grid(actors=1, world=world)))
    assert len(found.survivors) == NODES
    assert np.array_equal(found.mean, collect(MemoryGrid(answer, NODES)).mean)


def test_send_and_receive_waits_for_all(ray_grid):
    from flwr.app import Message

    grid = ray_grid(actors=2)
    content = pack_train_order(TrainOrder(1, SPEC.hash, SPEC.zeros()))
    messages = [Message(content, node, "train", group_id="1") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages, timeout=60.0)
    assert {reply.metadata.src_node_id for reply in replies} == set(range(1, NODES + 1))


def test_a_client_that_does_not_exist_is_one_sentence(ray_two):
    from simulations.clients import load_client

    with pytest.raises(ConfigError, match=r"module:name"):
        load_client("nowhere.at_all:app")
