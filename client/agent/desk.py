"""What the site's own people look at: status of the agent, budgets, and whether the books were changed."""

from __future__ import annotations

from typing import Any

import grpc

from client.agent import agent_pb2 as pb
from client.agent.agent_pb2_grpc import SiteDeskStub
from client.agent.audit_log import Head, verify
from client.agent.books import anchor, last_anchor
from client.agent.house import House
from client.agent.remote_site import CHANNEL_OPTIONS
from privacy.ledger import Ledger
from umbel.errors import SiteError


def ask_status(house: House, timeout: float = 5.0) -> dict[str, Any]:
    """What the running agent says of itself.

    Raises:
        SiteError: no agent answers on the site's own socket.
    """
    with grpc.insecure_channel(f"unix:{house.desk}", options=CHANNEL_OPTIONS) as channel:
        try:
            said = SiteDeskStub(channel).Status(pb.StatusQuestion(), timeout=timeout)
        except grpc.RpcError:
            raise SiteError(
                f"No agent runs for {house.folder}: start it with umbel site serve {house.folder}."
            ) from None
    return {
        "site": said.site,
        "version": said.version,
        "seconds": round(said.seconds, 1),
        "working": said.working or "nothing",
        "base": said.base or "none",
        "asked": said.asked,
        "refused": said.refused,
        "left bytes": said.left_bytes,
        "log lines": said.log_lines,
        "log head": said.log_head,
        "listening": list(said.listening),
    }


def budgets(house: House) -> list[dict[str, Any]]:
    """One row for each data set and unit that the ledger or the policy knows; empty before the first start.

    Raises:
        LedgerError: the ledger cannot be trusted.
    """
    if not house.ledger.exists():
        return []
    rows: list[dict[str, Any]] = []
    with Ledger.open(house.ledger, create=False) as ledger:
        for dataset, unit in ledger.datasets():
            budget = ledger.budget(dataset=dataset, unit=unit)
            known = house.policy.dataset(dataset)
            delta = budget.delta if budget else known.delta if known else 1e-5
            spent = ledger.spent(delta, dataset=dataset, unit=unit)
            rows.append(
                {
                    "data": dataset,
                    "unit": unit.value,
                    "epsilon": spent,
                    "budget": budget.epsilon if budget else None,
                    "delta": delta,
                    "left": max(0.0, budget.epsilon - spent) if budget else None,
                    "releases": len(ledger.events(dataset=dataset, unit=unit)),
                }
            )
    return rows


def verify_books(house: House, noted: str = "") -> tuple[Head, int]:
    """The end of the log and the lines of the ledger that it knows.

    Args:
        house: of the site.
        noted: an earlier end of the log, ``NUMBER:HASH``, or "".

    Raises:
        SiteError: the log was changed, or ``noted`` is no end of a log or no longer in it.
        LedgerError: the ledger was changed or does not go on from what the log knows.
    """
    if not house.log.exists():
        lost = "but has a ledger: the log was deleted, restore it" if house.ledger.exists() else "yet: start the agent"
        raise SiteError(f"The site {house.folder} has no log {lost}.")
    earlier = None
    if noted:
        number, _, digest = noted.partition(":")
        if not number.isdigit() or len(digest) != 64:
            raise SiteError(f"{noted!r} is no end of a log: give NUMBER:HASH, as umbel site log verify prints it.")
        earlier = Head(int(number), digest)
    head = verify(house.log, house.identity().public, noted=earlier)
    known = last_anchor(house.log)
    if known.lines or house.ledger.exists():
        anchor(house.ledger, known)
    return head, known.lines
