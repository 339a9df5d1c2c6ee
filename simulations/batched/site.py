"""Train orders of many virtual devices at once, by the code of the real site.

Each device is a :class:`client.local_site.LocalSite`: it recalls a round that it has trained before, pays for the next
one out of its own ledger, and answers plainly or with its first secure-aggregation message. Only the training in
between is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flwr.app import Context, Message, RecordDict

from client.client_app import open_site
from client.local_site import LocalSite
from client.outcome import RoundOutcome
from client.round_job import RoundJob
from client.site import Site
from simulations.batched.job import LaneJob, LaneOutcome
from simulations.batched.trainer import LaneTrainer
from umbel import wire
from umbel.config import RunConfig
from umbel.errors import SiteError, UmbelError, WireError
from umbel.wire import SecAggStep, TrainOrder, TrainReply

Reply = TrainReply | SecAggStep | UmbelError
"""What a site answers to a train order, or why it refuses."""


def train_sites(
    sites: Sequence[LocalSite], orders: Sequence[TrainOrder], config: RunConfig, *, lanes: int = 64
) -> list[Reply]:
    """What ``site.train(order)`` gives for each pair, in order; a site's error stands in its place.

    A device that stands twice gets its second order after its first is concluded, so that a repeated order is
    answered from memory: neither trained nor paid for again.

    Args:
        sites: of the devices, all of one run and in this process (they share its warm model).
        orders: one a site.
        config: of the run.
        lanes: most devices that train in one group; 1 trains them one after the other.

    Raises:
        ConfigError: ``lanes`` is below 1.
        SiteError: there are not as many orders as sites.
    """
    replies: list[Reply | None] = [None] * len(sites)
    waiting = list(range(len(sites)))
    if len(orders) != len(sites):
        raise SiteError(f"{len(sites)} devices came with {len(orders)} orders: give each device one order.")
    while waiting:
        names: set[str] = set()
        wave: list[int] = []
        later: list[int] = []
        for i in waiting:
            (later if sites[i].name in names else wave).append(i)
            names.add(sites[i].name)
        found = _wave([sites[i] for i in wave], [orders[i] for i in wave], config, lanes)
        for i, reply in zip(wave, found, strict=True):
            replies[i] = reply
        waiting = later
    return [reply for reply in replies if reply is not None]


def answer_train(
    messages: Sequence[Message],
    contexts: Sequence[Context],
    *,
    lanes: int = 64,
    opener: Callable[[Context], Site] = open_site,
) -> list[Message]:
    """The ClientApp's replies to train messages, one each, in order; refusals included.

    Messages may share their content, which is then read once.

    Args:
        messages: of type ``train``, of one run.
        contexts: of the devices, one a message; their state is changed as the ClientApp would change it.
        lanes: as in :func:`train_sites`.
        opener: opens a device's site; the ClientApp's own by default.
    """
    found = _answers(messages, contexts, lanes, opener)
    return [Message(_pack(reply), reply_to=message) for message, reply in zip(messages, found, strict=True)]


def plain_replies(
    messages: Sequence[Message],
    contexts: Sequence[Context],
    *,
    lanes: int = 64,
    opener: Callable[[Context], Site] = open_site,
) -> list[TrainReply | wire.Refusal]:
    """:func:`answer_train` where the replies are summed in this process and need not become messages."""
    return [_plain(reply) for reply in _answers(messages, contexts, lanes, opener)]


def _answers(
    messages: Sequence[Message], contexts: Sequence[Context], lanes: int, opener: Callable[[Context], Site]
) -> list[Reply]:
    found: list[tuple[LocalSite, TrainOrder] | UmbelError] = []
    orders: dict[int, TrainOrder] = {}
    for message, context in zip(messages, contexts, strict=True):
        try:
            site = opener(context)
            if not isinstance(site, LocalSite):
                raise SiteError("Only virtual devices train in lanes: send this message to its site alone.")
            content = id(message.content)
            if content not in orders:
                orders[content] = wire.unpack_train_order(message.content)
            found.append((site, orders[content]))
        except UmbelError as error:
            found.append(error)
    pairs = [item for item in found if not isinstance(item, UmbelError)]
    trained: Iterator[Reply] = iter(())
    if pairs:
        config = RunConfig.from_flat(contexts[0].run_config)
        trained = iter(train_sites([site for site, _ in pairs], [order for _, order in pairs], config, lanes=lanes))
    return [item if isinstance(item, UmbelError) else next(trained) for item in found]


def _wave(sites: Sequence[LocalSite], orders: Sequence[TrainOrder], config: RunConfig, lanes: int) -> list[Reply]:
    """One order a device: prepare all, train together, conclude each."""
    prepared: list[RoundJob | RoundOutcome | UmbelError] = []
    for site, order in zip(sites, orders, strict=True):
        try:
            prepared.append(site.prepare(order))
        except UmbelError as error:
            prepared.append(error)
    jobs = [job for job in prepared if isinstance(job, RoundJob)]
    outcomes = iter(_train(jobs, config, lanes))
    replies: list[Reply] = []
    for site, order, found in zip(sites, orders, prepared, strict=True):
        try:
            if isinstance(found, RoundJob):
                trained = next(outcomes)
                if isinstance(trained, UmbelError):
                    with site.unless_released(found.line):
                        raise trained
                found = site.conclude(found, trained.result, trained.local, trained.seconds)
            replies.append(found if isinstance(found, UmbelError) else site.reply(order, found))
        except UmbelError as error:
            replies.append(error)
    return replies


def _train(jobs: Sequence[RoundJob], config: RunConfig, lanes: int) -> list[LaneOutcome]:
    if not jobs:
        return []
    return LaneTrainer(jobs[0].tuned, jobs[0].collator, config.train, lanes=lanes).train_many(
        [
            LaneJob(
                job.examples,
                job.client,
                seed=job.seed,
                amount=job.order.amount,
                private=job.private,
                span=job.span,
                side=job.side,
            )
            for job in jobs
        ]
    )


def _plain(reply: Reply) -> TrainReply | wire.Refusal:
    if isinstance(reply, SecAggStep):
        reply = WireError("A secure-aggregation message came where an update was asked for: both ends must agree.")
    return wire.Refusal(reply.exit_code, str(reply)) if isinstance(reply, UmbelError) else reply


def _pack(reply: Reply) -> RecordDict:
    if isinstance(reply, UmbelError):
        return wire.pack_refusal(wire.Refusal(reply.exit_code, str(reply)))
    return wire.pack_secagg(reply) if isinstance(reply, SecAggStep) else wire.pack_train_reply(reply)
