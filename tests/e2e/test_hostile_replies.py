"""What a registered site may send instead of a reply, through a real SuperLink to a real ServerApp."""

import hashlib
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from benchmarks.load import Coordinator, Layout, Sites
from coordinator.pulling import MAX_PARTS, most_bytes
from umbel import wire

pytestmark = [pytest.mark.flower, pytest.mark.slow]

HOSTILE = ("hollow", "garbage", "promised", "huge", "crowded", "borrowed")
HONEST = 3


class Mixed(Sites):
    """The first sites send what is no reply, each something else; the others are honest."""

    def _packed(self, index, reply):
        if index >= len(HOSTILE) or reply.metadata.message_type != wire.MessageType.TRAIN:
            return super()._packed(index, reply)
        return getattr(self, f"_{HOSTILE[index]}")(reply)

    def _hollow(self, reply):
        """A message around something that is no RecordDict."""
        return _around(reply, ConfigRecord({"x": 1}).deflate())

    def _garbage(self, reply):
        """A RecordDict whose body cannot be read, deep down."""
        return _around(reply, _object("RecordDict", (), b"\xff{" * 9))

    def _promised(self, reply):
        """Objects that are announced and never come."""
        name, tree, _ = super()._packed(0, reply)
        return name, tree, {}

    def _huge(self, reply):
        """More bytes than any reply of this run may have."""
        noise = np.random.default_rng(0).integers(0, 256, most_bytes(self._layout.size) + (4 << 20), dtype=np.uint8)
        reply.content["umbel.vector"] = ArrayRecord(array_dict={"v": Array(noise)})
        return super()._packed(0, reply)

    def _crowded(self, reply):
        """More objects than any reply may have."""
        for number in range(MAX_PARTS):
            reply.content[f"x{number}"] = ConfigRecord({"x": number})
        name, tree, parts = super()._packed(0, reply)
        return name, tree, dict(list(parts.items())[:1])

    def _borrowed(self, reply):
        """A body that says it answers somebody else's order."""
        reply.metadata.__dict__["_reply_to_message_id"] = "0" * 64
        name, tree, parts = super()._packed(0, reply)
        reply.metadata.__dict__["_reply_to_message_id"] = self._orders[HOSTILE.index("borrowed")]
        return name, tree, parts

    def _answer(self, index, order):
        if not hasattr(self, "_orders"):
            self._orders = {}
        self._orders[index] = order.metadata.message_id
        return super()._answer(index, order)


def _object(kind, children, body):
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body


def _around(reply, content):
    """A message object with ``content`` as its only child."""
    child = hashlib.sha256(content).hexdigest()
    body = reply.deflate().split(b"\0", 1)[1]
    message = _object("Message", [child], body)
    name = hashlib.sha256(message).hexdigest()
    tree = ObjectTree(object_id=name, children=[ObjectTree(object_id=child)])
    return name, tree, {name: message, child: content}


def test_one_site_s_reply_cannot_end_or_stop_a_run(tmp_path):
    coordinator = Coordinator(tmp_path, len(HOSTILE) + HONEST, 1)
    coordinator.options |= {"federation.timeout": 25.0, "federation.minimum": HONEST}
    try:
        coordinator.start()
        with Mixed(coordinator.address, len(HOSTILE) + HONEST, Layout.of(coordinator.options, tmp_path)) as sites:
            coordinator.submit()
            coordinator.watch(sites)
        (line,) = coordinator.metrics().rounds
    finally:
        coordinator.stop()
    # The borrowed order is not believed: the SuperLink's own record says whom the reply answers, and it counts.
    assert line.survivors == HONEST + 1
    assert line.cohort == len(HOSTILE) + HONEST
    assert line.missing == 1
    assert all(reason.startswith("The reply cannot be read: ") for reason in line.reasons)
    said = " ".join(line.reasons)
    assert "MessageInitializationError" in said
    assert "UnicodeDecodeError" in said
    assert "it is larger than" in said
    assert f"more than {MAX_PARTS} parts" in said
    assert line.rejected == sum(line.reasons.values()) == 4


def test_what_the_messages_above_are_made_of():
    """They are what Flower itself would send, but for the one thing that is wrong."""
    content = RecordDict({"umbel": ConfigRecord({"x": 1})})
    assert set(get_all_nested_objects(content)) == {content.object_id, content["umbel"].object_id}
    assert get_object_tree(content).object_id == content.object_id
    body = json.dumps({"umbel": content["umbel"].object_id}).encode()
    assert _object("RecordDict", [content["umbel"].object_id], body) == content.deflate()
