"""Train orders of many devices whose replies are summed in the process that plays them."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context, Message

from client.outcome import forget_outcome
from client.store import ContextStore
from coordinator.collect.fold import Fold, FoldPlan
from coordinator.courier import Reply, read_reply
from simulations.clients import Client, FoldedClient, answer_all, replies_of
from umbel.wire import Refusal


def fold_here(
    client: Client, plan: FoldPlan, messages: Sequence[Message], contexts: Sequence[Context], lanes: int
) -> Fold:
    """The sum of what the devices answer, by the coordinator's rules.

    A client that can hand its replies over as they are does so; nothing is packed, copied or parsed then. What a
    device keeps to send the same update again is erased: a sum that was lost is made again as a whole, and nobody can
    ask for a part of one that was not.

    Args:
        client: what answers.
        plan: of the round.
        messages: train orders, one a device; they may share their content.
        contexts: of the devices; their state is changed.
        lanes: most devices that train in one batch.
    """
    fold = Fold(plan)
    nodes = [message.metadata.dst_node_id for message in messages]
    if isinstance(client, FoldedClient):
        for node, found in zip(nodes, replies_of(client, messages, contexts, lanes), strict=True):
            if isinstance(found, Refusal):
                fold.take(Reply(node, None, found))
            else:
                fold.take_unpacked(node, found)
    else:
        for node, reply in zip(nodes, answer_all(client, messages, contexts, lanes), strict=True):
            fold.take(read_reply(node, reply))
    for context in contexts:
        if context.state:
            forget_outcome(ContextStore(context.state))
    return fold
