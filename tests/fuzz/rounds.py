"""Secure aggregation: its messages, and both state machines at every step of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from privacy.secagg import RoundContext, SecAggClient, SecAggCoordinator, SecAggParameters, SimulationAuthority
from privacy.secagg.agreement import agree
from privacy.secagg.messages import Masked
from tests.fuzz.target import Target
from tests.secure_messages import CONTEXT, MESSAGES
from umbel.config import RunConfig
from umbel.config.secagg import SecAggConfig
from umbel.wire import read_secure_order, secure_order

SEAL = b"k" * 32
IDS = (10, 11, 12)


def targets() -> Iterator[Target]:
    """Messages alone, then in a round."""
    for message in MESSAGES:
        kind: Any = type(message)
        more = (8,) if kind is Masked else ()
        yield Target(
            f"message-{kind.__name__.lower()}",
            lambda data, kind=kind, more=more: kind.from_bytes(data, CONTEXT, *more),
            (message.to_bytes(CONTEXT),),
        )
    yield from _round()
    yield Target("secure-order", _agreed, (secure_order("run", 3, 0), secure_order("r", 40, 7)), base=4 << 20)


def _agreed(data: bytes) -> bytes:
    run, cohort, attempt = read_secure_order(data)
    parameters = agree(RunConfig.from_flat({"secagg.enabled": True}), cohort, 40)
    return RoundContext(run, 1, attempt, bytes(32)).digest(parameters)


def _round() -> Iterator[Target]:
    """Each step once for real, so that coordinator and client stand where the next message is due."""
    authority = SimulationAuthority(b"a secret of these tests")
    roster, context = authority.roster(IDS), RoundContext("run", 1, 0, bytes(32))
    parameters = SecAggParameters.choose(SecAggConfig(bits=20, graph="complete"), len(IDS), 33)
    clients = {id: SecAggClient(authority.identity(id), roster, parameters, context) for id in IDS}
    vectors = {id: np.full(33, 0.1, np.float32) for id in IDS}

    def client(stage: str, step: Callable[[SecAggClient, bytes], Any], seeds: tuple[bytes, ...]) -> Target:
        blob = clients[IDS[0]].export(SEAL)

        def read(data: bytes) -> Any:
            identity = authority.identity(IDS[0])
            return step(SecAggClient.restore(blob, SEAL, identity, roster, parameters, context), data)

        return Target(f"client-{stage}", read, seeds)

    def coordinator(stage: str, seeds: dict[int, bytes]) -> Target:
        """The first client has not answered yet; a message from it that is taken leaves a machine that waits on."""
        played = _played(parameters, context, roster, history, stage)
        receive = getattr(played, f"receive_{stage}")
        return Target(f"coordinator-{stage}", lambda data: receive(IDS[0], data), (seeds[IDS[0]],))

    history: dict[str, dict[int, bytes]] = {}
    whole = SecAggCoordinator(parameters, context, roster)

    def took(stage: str, sent: dict[int, bytes]) -> Target:
        target = coordinator(stage, sent)
        history[stage] = sent
        for id, data in sent.items():
            getattr(whole, f"receive_{stage}")(id, data)
        return target

    yield took("advertisement", {id: clients[id].advertise() for id in IDS})
    listed = whole.key_list()
    yield client("share", lambda c, data: c.share(data), (listed,))
    yield took("shares", {id: clients[id].share(listed) for id in IDS})
    delivered = {id: whole.shares_for(id) for id in IDS}
    yield client("mask", lambda c, data: c.mask(data, vectors[IDS[0]]), (delivered[IDS[0]],))
    yield took("masked", {id: clients[id].mask(delivered[id], vectors[id]) for id in IDS})
    survivors = whole.survivors_message()
    yield client("confirm", lambda c, data: c.confirm(data), (survivors,))
    yield took("confirmation", {id: clients[id].confirm(survivors) for id in IDS})
    signatures = whole.signatures_message()
    yield client("unmask", lambda c, data: c.unmask(data), (signatures,))
    yield took("unmasking", {id: clients[id].unmask(signatures) for id in IDS})


def _played(
    parameters: SecAggParameters, context: RoundContext, roster: Any, history: dict[str, dict[int, bytes]], until: str
) -> SecAggCoordinator:
    """A coordinator that has heard everything before the stage ``until``."""
    made = SecAggCoordinator(parameters, context, roster)
    asks = {
        "shares": made.key_list,
        "masked": lambda: [made.shares_for(id) for id in IDS],
        "confirmation": made.survivors_message,
        "unmasking": made.signatures_message,
    }
    for stage, sent in history.items():
        if stage in asks:
            asks[stage]()
        for id, data in sent.items():
            getattr(made, f"receive_{stage}")(id, data)
    if until in asks:
        asks[until]()
    return made
