"""Packed messages: orders to many virtual devices in one Flower message, and their replies in one.

Only arrays, numbers and text travel, as everywhere; nothing is pickled. A content that several devices get is packed
once, and so is what each device remembers, which travels with its order and comes back where it changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from coordinator.collect.base import Broadcast
from coordinator.collect.fold import Fold, FoldPlan, bare_broadcast
from coordinator.population import Participant
from simulations.clients import Client, answer_all
from simulations.folding import fold_here
from simulations.orders import adopt_identity, make_context
from umbel.adapter import AdapterSpec
from umbel.errors import WireError

COHORT = "query.cohort"
"""Flower's message type of a packed message."""
_HEAD = "umbel.cohort"
_SUM = "umbel.sum"


@dataclass(frozen=True, slots=True)
class PackedReply:
    """What came back: a reply or an error for each device, or their sum; and what devices remember now."""

    replies: list[RecordDict | str]
    fold: Fold | None
    states: dict[int, RecordDict]


def pack_orders(
    messages: Sequence[Message],
    states: dict[int, RecordDict],
    *,
    devices: int,
    lanes: int,
    plan: FoldPlan | None = None,
) -> RecordDict:
    """One message's records for orders of one type.

    Args:
        messages: one a device.
        states: what devices remember, by node id.
        devices: virtual devices in all.
        lanes: most devices that train in one batch.
        plan: fold the replies by it.
    """
    packed = RecordDict()
    places: dict[int, int] = {}
    contents = []
    for message in messages:
        key = id(message.content)
        if key not in places:
            places[key] = len(places)
            _put(packed, f"c{places[key]}", message.content)
        contents.append(places[key])
    nodes = [message.metadata.dst_node_id for message in messages]
    for node in nodes:
        if node in states:
            _put(packed, f"s{node}", states[node])
    first = messages[0].metadata if messages else None
    head = {
        "kind": first.message_type if first else "",
        "group": first.group_id if first else "",
        "ttl": first.ttl if first else 0.0,
        "nodes": nodes,
        "contents": contents,
        "devices": devices,
        "lanes": lanes,
        "plan": _plan_json(plan) if plan is not None else None,
    }
    packed[_HEAD] = ConfigRecord({"orders": json.dumps(head)})
    return packed


def answer_packed(content: RecordDict, context: Context, client: Client) -> RecordDict:
    """What a carrier answers: it plays all devices of a packed message, train orders in groups of ``lanes``.

    Raises:
        WireError: the message cannot be read.
    """
    head = _head(content, "orders")
    lanes, devices, kind = int(head["lanes"]), int(head["devices"]), str(head["kind"])
    contents = [_get(content, f"c{place}") for place in range(1 + max(head["contents"], default=-1))]
    adopt_identity()
    messages, contexts = [], []
    for node, place in zip(head["nodes"], head["contents"], strict=True):
        made = Message(contents[place], int(node), kind, ttl=head["ttl"], group_id=head["group"])
        made.metadata.__dict__["_message_id"] = str(node)
        messages.append(made)
        state = _get(content, f"s{node}")
        contexts.append(make_context(int(node), devices, dict(context.run_config), state, context.run_id))
    before = [_fingerprint(device.state) for device in contexts]
    replies: list[Message] = []
    fold: Fold | None = None
    if head["plan"] is not None:
        fold = fold_here(client, _read_plan(head["plan"]), messages, contexts, lanes)
    else:
        replies = answer_all(client, messages, contexts, lanes)
    packed = RecordDict()
    told: dict[str, Any] = {"errors": {}, "changed": [], "fold": None}
    for device, known in zip(contexts, before, strict=True):
        if _fingerprint(device.state) != known:
            told["changed"].append(device.node_id)
            _put(packed, f"s{device.node_id}", device.state)
    if fold is not None:
        told["fold"], vector = fold.export()
        packed[_SUM] = ArrayRecord(array_dict={"v": Array(vector)})
    else:
        for place, reply in enumerate(replies):
            if reply.has_error():
                told["errors"][str(place)] = reply.error.reason or "the device failed"
            else:
                _put(packed, f"r{place}", reply.content)
    packed[_HEAD] = ConfigRecord({"replies": json.dumps(told)})
    return packed


def read_packed(content: RecordDict, count: int, plan: FoldPlan | None = None) -> PackedReply:
    """Reads :func:`answer_packed`'s records for ``count`` devices.

    Raises:
        WireError: they cannot be read.
    """
    told = _head(content, "replies")
    states = {int(node): _get(content, f"s{node}") for node in told["changed"]}
    if plan is not None:
        return PackedReply([], Fold.restore(plan, told["fold"], content.array_records[_SUM]["v"].numpy()), states)
    errors: dict[str, str] = told["errors"]
    replies = [errors[str(i)] if str(i) in errors else _get(content, f"r{i}") for i in range(count)]
    return PackedReply(replies, None, states)


def _put(packed: RecordDict, prefix: str, records: RecordDict) -> None:
    for name, record in records.items():
        packed[f"{prefix}|{name}"] = record


def _get(packed: RecordDict, prefix: str) -> RecordDict:
    start = f"{prefix}|"
    return RecordDict({name.removeprefix(start): record for name, record in packed.items() if name.startswith(start)})


def _head(content: RecordDict, key: str) -> dict[str, Any]:
    try:
        body = json.loads(content.config_records[_HEAD][key])  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        body = None
    if not isinstance(body, dict):
        raise WireError("A packed message cannot be read: both ends must run the same version of umbel.")
    return body


def _fingerprint(state: RecordDict) -> tuple[tuple[str, str], ...]:
    return tuple((name, record.object_id) for name, record in state.items())


def _plan_json(plan: FoldPlan) -> dict[str, Any]:
    broadcast = plan.broadcast
    return {
        "round": broadcast.round,
        "spec": broadcast.spec.to_json(),
        "upload": broadcast.upload_spec.to_json(),
        "pooled": broadcast.pooled,
        "members": [[member.node, member.site, member.rank] for member in plan.members.values()],
        "by_examples": plan.by_examples,
        "quantized": plan.quantized,
    }


def _read_plan(body: dict[str, Any]) -> FoldPlan:
    spec, upload = AdapterSpec.from_json(body["spec"]), AdapterSpec.from_json(body["upload"])
    broadcast: Broadcast = bare_broadcast(body["round"], spec, upload, pooled=body["pooled"])
    members = [Participant(int(node), str(site), int(rank)) for node, site, rank in body["members"]]
    return FoldPlan(broadcast, {m.node: m for m in members}, body["by_examples"], body["quantized"])
