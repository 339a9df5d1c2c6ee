"""Replies out of a SuperLink's store that a test fills: what is whole, late, broken, large or lost."""

from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from coordinator.pulling import Puller, most_bytes
from umbel import wire


class Store:
    """What HttpGrid's client asks a SuperLink: replies by order, objects by id; all of it in a dictionary."""

    def __init__(self):
        self.replies, self.objects, self.late, self.forgotten, self.asked = {}, {}, set(), [], []
        self.broken = None

    def add(self, order, records=None, *, says=None):
        metadata = Metadata(7, "", 5, 1, says or order, "", 0.0, 60.0, "train")
        message = make_message(metadata=metadata, content=records or RecordDict({"umbel": ConfigRecord({"x": order})}))
        self.objects |= {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        self.replies[order] = (message.object_id, get_object_tree(message))
        return message

    def PullMessages(self, request):
        found = [(order, *self.replies.pop(order)) for order in request.message_ids if order in self.replies]
        protos = [
            SimpleNamespace(metadata=SimpleNamespace(message_id=name, reply_to_message_id=order))
            for order, name, _ in found
        ]
        return SimpleNamespace(messages_list=protos, message_object_trees=[tree for *_, tree in found])

    def PullObject(self, request):
        self.asked.append(request.object_id)
        if self.broken is not None:
            raise self.broken
        name = request.object_id
        there = name in self.objects
        ready = there and name not in self.late
        content = self.objects[name] if ready else b""
        return PullObjectResponse(object_found=there, object_available=ready, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.forgotten.append(request.message_object_id)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def puller(store):
    grid = HttpGrid.__new__(HttpGrid)
    grid._client, grid._run, grid.node = store, Run.create_empty(7), Node(node_id=1)
    return Puller(grid)


def only(puller, *orders):
    return dict(puller.pull(list(orders)))


def test_what_is_whole_is_handed_over_once_and_forgotten(store, puller):
    messages = {order: store.add(order) for order in ("a", "b")}
    found = only(puller, "a", "b", "c")
    assert set(found) == {"a", "b"}
    assert all(isinstance(message, Message) for message in found.values())
    assert found["a"].content["umbel"]["x"] == "a"
    assert sorted(store.forgotten) == sorted(message.object_id for message in messages.values())
    assert only(puller, "a", "b", "c") == {}


def test_a_reply_whose_parts_are_missing_keeps_nobody_waiting_and_is_read_when_they_come(store, puller):
    late = store.add("late")
    store.late = set(get_all_nested_objects(late)) - {late.object_id}
    store.add("there")
    assert set(only(puller, "late", "there")) == {"there"}
    store.asked.clear()
    assert only(puller, "late") == {}
    assert len(store.asked) == 1
    assert store.asked[0] in store.late
    assert late.object_id not in store.forgotten
    store.late = set()
    assert only(puller, "late")["late"].content["umbel"]["x"] == "late"


def test_an_order_that_is_given_up_is_not_looked_at_again(store, puller):
    late = store.add("late")
    store.late = set(get_all_nested_objects(late))
    only(puller, "late")
    store.asked.clear()
    assert only(puller, "other") == {}
    assert store.asked == []


@pytest.mark.parametrize("kind", ["lost", "flipped", "empty", "foreign"])
def test_what_cannot_be_read_is_a_refusal_and_the_next_one_is_read(store, puller, kind):
    bad = store.add("bad")
    part = bad.content["umbel"].object_id
    if kind == "lost":
        del store.objects[part]
    if kind == "flipped":
        store.objects[part] = store.objects[part][:-3] + b"\xff\xff\xff"
    if kind == "empty":
        store.objects[part] = b""
    if kind == "foreign":
        store.objects[bad.content.object_id] = store.objects[part]
    store.add("good")
    found = only(puller, "bad", "good")
    assert isinstance(found["good"], Message)
    assert isinstance(found["bad"], wire.Refusal)
    assert found["bad"].message.startswith("The reply cannot be read: ")
    assert bad.object_id in store.forgotten


def test_a_reply_above_the_limit_is_refused_whatever_its_parts(store, puller):
    vector = np.zeros(wire.INLINE, np.float32)
    for order in ("small", "large"):
        store.add(order, wire.pack_train_reply(wire.TrainReply("h", vector if order == "large" else vector[:9])))
    puller.limit = wire.INLINE
    found = only(puller, "small", "large")
    assert isinstance(found["small"], Message)
    assert f"larger than {wire.INLINE} bytes" in found["large"].message
    assert most_bytes(vector.size) > 4 * vector.size


def test_the_order_is_the_superlink_s_and_not_the_body_s(store, puller):
    store.add("mine", says="yours")
    assert set(only(puller, "mine", "yours")) == {"mine"}


def test_a_superlink_that_cannot_be_reached_is_no_refusal(store, puller):
    store.add("a")
    store.broken = httpx.ConnectError("gone")
    with pytest.raises(httpx.ConnectError):
        only(puller, "a")
    store.broken = None
    assert isinstance(only(puller, "a")["a"], Message)


def test_a_part_that_is_too_large_for_the_superlink_is_a_refusal(store, puller):
    request = httpx.Request("POST", "http://superlink")
    store.add("a")
    store.broken = httpx.HTTPStatusError("413", request=request, response=httpx.Response(413, request=request))
    assert isinstance(only(puller, "a")["a"], wire.Refusal)


def test_stopping_in_the_middle_loses_nothing(store, puller):
    for order in "abc":
        store.add(order)
    first = next(iter(puller.pull(["a", "b", "c"])))[0]
    assert {first, *only(puller, *({"a", "b", "c"} - {first}))} == {"a", "b", "c"}


def test_stopping_in_the_middle_loses_nothing_on_other_grids():
    from simulations.memory_grid import MemoryGrid

    grid = MemoryGrid(lambda message, _context: Message(RecordDict(), reply_to=message), 3)
    orders = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    waiting = set(grid.push_messages(orders))
    puller = Puller(grid)
    while waiting:
        for order, message in puller.pull(sorted(waiting)):
            assert isinstance(message, Message)
            waiting.discard(order)
            break


def test_flower_s_own_reader_ends_with_the_first_bad_reply(store, puller):
    """Why there is a reader of ours: should this fail, Flower has mended it and ours may go."""
    bad = store.add("bad")
    store.add("good")
    store.objects[bad.content["umbel"].object_id] = b""
    with pytest.raises(ValueError, match=r"."):
        puller._grid.pull_messages(["bad", "good"])
