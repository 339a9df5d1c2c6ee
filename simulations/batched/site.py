"""Train orders of many virtual devices at once, by the code of the real site.

Each device is a :class:`client.local_site.LocalSite`: it recalls a round that it has trained before, pays for the next
one out of its own ledger, and answers plainly or with its first secure-aggregation message. Only the training in
between is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context, Message, RecordDict

from client.client_app import open_site
from client.local_site import LocalSite
from umbel import wire
from umbel.errors import SiteError, UmbelError
from umbel.wire import SecAggStep, TrainOrder, TrainReply

Reply = TrainReply | SecAggStep | UmbelError


def train_sites(sites: Sequence[LocalSite], orders: Sequence[TrainOrder], *, lanes: int = 64) -> list[Reply]:
    """What ``site.train(order)`` gives for each pair, in order; a site's error stands in its place.

    All sites must belong to one run in this process (they share its warm model).

    Args:
        sites: of the devices; the same device twice gets its second order after its first.
        orders: one a site.
        lanes: most devices that train in one group; 1 trains them one after the other.
    """
    replies: list[Reply] = []
    for site, order in zip(sites, orders, strict=True):
        try:
            replies.append(site.train(order))
        except UmbelError as error:
            replies.append(error)
    return replies


def answer_train(messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int = 64) -> list[Message]:
    """The ClientApp's replies to train messages, one each, in order; refusals included.

    Args:
        messages: of type ``train``.
        contexts: of the devices, one a message; their state is changed as the ClientApp would change it.
        lanes: as in :func:`train_sites`.
    """
    found: list[tuple[LocalSite, TrainOrder] | UmbelError] = []
    for message, context in zip(messages, contexts, strict=True):
        try:
            site = open_site(context)
            if not isinstance(site, LocalSite):
                raise SiteError(
                    "Lanes train virtual devices only, whose site is in this process: send others one by one."
                )
            found.append((site, wire.unpack_train_order(message.content)))
        except UmbelError as error:
            found.append(error)
    pairs = [item for item in found if not isinstance(item, UmbelError)]
    trained = iter(train_sites([site for site, _ in pairs], [order for _, order in pairs], lanes=lanes))
    replies = (item if isinstance(item, UmbelError) else next(trained) for item in found)
    return [Message(_pack(reply), reply_to=message) for message, reply in zip(messages, replies, strict=True)]


def _pack(reply: Reply) -> RecordDict:
    if isinstance(reply, UmbelError):
        return wire.pack_refusal(wire.Refusal(reply.exit_code, str(reply)))
    return wire.pack_secagg(reply) if isinstance(reply, SecAggStep) else wire.pack_train_reply(reply)
