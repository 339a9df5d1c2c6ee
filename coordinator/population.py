"""The population: which sites take part, under names that survive a restart."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from flwr.app import RecordDict

from coordinator.courier import Courier
from umbel import wire
from umbel.adapter import AdapterSpec
from umbel.config import FederationConfig
from umbel.errors import FederationError, WireError
from umbel.wire import MessageType

logger = logging.getLogger("flwr.umbel")


@dataclass(frozen=True, slots=True)
class Participant:
    """One connected site.

    Attributes:
        node: Flower's node id, new at every start.
        site: the site's own name, the same at every start.
        rank: its LoRA rank.
    """

    node: int
    site: str
    rank: int


def discover(
    courier: Courier, spec: AdapterSpec, config: FederationConfig, *, mixed: bool = False
) -> list[Participant]:
    """Waits for the population to connect, asks every node to describe itself, and sorts them by name.

    Args:
        courier: how messages travel.
        spec: the server's.
        config: how many sites there should be, and how long to wait.
        mixed: whether sites may have lower LoRA ranks than the server.

    A node with another adapter spec (or a name already taken) is left out and logged.

    Raises:
        FederationError: fewer than ``federation.minimum`` usable nodes after ``federation.wait`` seconds.
    """
    deadline = time.monotonic() + config.wait
    while len(courier.nodes()) < config.clients and time.monotonic() < deadline:
        time.sleep(0.2)
    orders = [(node, RecordDict) for node in courier.nodes()]
    found: dict[str, Participant] = {}
    reasons: list[str] = []
    for reply in courier.ask(MessageType.DESCRIBE, orders, timeout=config.timeout, group="0"):
        if reply.records is None:
            reasons.append(reply.reason)
            continue
        try:
            description = wire.unpack_description(reply.records)
        except WireError as error:
            reasons.append(str(error))
            continue
        if description.site in found:
            reasons.append(f"two nodes call themselves {description.site!r}: give each its own partition-id")
        elif not 1 <= description.rank <= spec.lora.rank or (description.rank != spec.lora.rank and not mixed):
            reasons.append(
                f"site {description.site!r} trains at LoRA rank {description.rank} and the server's is "
                f"{spec.lora.rank}: set strategy.ranks to mixed for lower ranks, or mend the node's rank"
            )
        elif description.spec_hash != spec.with_rank(description.rank).hash:
            reasons.append(f"site {description.site!r} would train another adapter: install the same model there")
        else:
            found[description.site] = Participant(reply.node, description.site, description.rank)
    for reason in sorted(set(reasons)):
        logger.warning("A node was left out: %s", reason)
    if len(found) < config.minimum:
        why = f" The first reason: {reasons[0]}" if reasons else ""
        raise FederationError(
            f"Only {len(found)} of {config.clients} sites can take part and federation.minimum is {config.minimum}: "
            f"start more sites or lower it.{why}"
        )
    return [found[site] for site in sorted(found)]
