"""Sums made where the devices are: packed or not, the same bits, refusals and memory."""

import pickle

import numpy as np
import pytest
from flwr.app import Message

from client.outcome import RoundOutcome, keep_outcome
from client.store import ContextStore
from coordinator.collect.base import Broadcast
from coordinator.collect.fold import FoldPlan
from coordinator.population import Participant
from simulations.folding import fold_here
from simulations.orders import Batch, Order, adopt_identity, make_context
from tests.simulations.noop import SPEC, answer
from umbel import wire
from umbel.wire import Refusal, TrainOrder

DEVICES = 7


class Direct:
    """:func:`answer` without messages."""

    def __call__(self, message, context):
        pytest.fail("a message was made")

    def replies(self, messages, contexts, *, lanes):
        assert len(messages) <= lanes
        found = []
        for message, context in zip(messages, contexts, strict=True):
            records = answer(message, context).content
            refusal = wire.unpack_refusal(records)
            found.append(refusal or wire.unpack_train_reply(records))
        return found


def orders_and_contexts(**options):
    adopt_identity()
    records = wire.pack_train_order(TrainOrder(1, SPEC.hash, SPEC.zeros()))
    messages = [Message(records, node, "train", group_id="1") for node in range(1, DEVICES + 1)]
    return messages, [make_context(node, DEVICES, options, _state()) for node in range(1, DEVICES + 1)]


def _state():
    from flwr.app import RecordDict

    return RecordDict()


def plan(**options):
    members = [Participant(node, f"s{node}", SPEC.lora.rank) for node in range(1, DEVICES + 1)]
    return FoldPlan.of(members, Broadcast(1, SPEC, lambda _r: (SPEC, SPEC.zeros()), SPEC), **options)


@pytest.mark.parametrize("options", [{}, {"liar": 2}, {"stranger": 3}, {"liar": 0, "stranger": 6}])
@pytest.mark.parametrize("by_examples", [False, True])
def test_unpacked_replies_give_the_same_bits(options, by_examples):
    packed = fold_here(answer, plan(by_examples=by_examples), *orders_and_contexts(**options), 1)
    direct = fold_here(Direct(), plan(by_examples=by_examples), *orders_and_contexts(**options), 3)
    np.testing.assert_array_equal(packed.accumulator.total(), direct.accumulator.total())
    assert (packed.survivors, packed.rejected, packed.metrics) == (direct.survivors, direct.rejected, direct.metrics)
    assert (
        (packed.bytes_up, packed.answered) == (direct.bytes_up, direct.answered) == (DEVICES * 4 * SPEC.size, DEVICES)
    )
    assert len(packed.survivors) == DEVICES - len(options)


def test_a_client_that_raises_is_refused_with_its_group_alone():
    fold = fold_here(Direct(), plan(), *orders_and_contexts(broken=4), 2)
    assert fold.survivors == ["s1", "s2", "s3", "s4", "s7"]
    assert fold.rejected == {"ValueError: this device is broken": 2}


def test_a_refusal_is_counted():
    class Refusing(Direct):
        def replies(self, messages, contexts, *, lanes):
            return [Refusal(74, "the budget is spent")] * len(messages)

    fold = fold_here(Refusing(), plan(), *orders_and_contexts(), 4)
    assert fold.rejected == {"the budget is spent": DEVICES}
    assert fold.accumulator.count == 0


def test_nobody_keeps_an_update_that_was_summed():
    messages, contexts = orders_and_contexts()
    for context in contexts:
        store = ContextStore(context.state)
        keep_outcome(store, RoundOutcome("key", SPEC.zeros(), SPEC.hash, {}))
        store.put("mine", b"stays")
    fold_here(Direct(), plan(), messages, contexts, 4)
    assert [ContextStore(context.state).get("outcome") for context in contexts] == [None] * DEVICES
    assert [ContextStore(context.state).get("mine") for context in contexts] == [b"stays"] * DEVICES


def test_a_batch_travels_whole():
    messages, _ = orders_and_contexts()
    orders = [Order(message.metadata, place % 2, bytes([place])) for place, message in enumerate(messages)]
    sent = Batch(orders, ["a", "b"], b"plan", 1, 12.5)
    came = pickle.loads(pickle.dumps(sent))
    assert [order.metadata.__dict__ for order in came.orders] == [order.metadata.__dict__ for order in orders]
    assert [(order.content, order.state) for order in came.orders] == [(o.content, o.state) for o in orders]
    assert (came.contents, came.fold, came.attempts, came.expires) == (["a", "b"], b"plan", 1, 12.5)
