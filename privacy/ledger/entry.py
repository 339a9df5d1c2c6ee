"""One line of the ledger: canonical JSON, chained by SHA-256 to the line before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from privacy.accounting import Event
from privacy.ledger.budget import Budget
from privacy.terms import Mechanism, Relation, Sampler, Unit
from umbel.canonical import canonical_json
from umbel.errors import LedgerError, PlanError

Kind = Literal["reserved", "released", "void", "budget"]
GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes:
        number: place in the chain, from 1.
        kind: ``reserved`` books an event; ``released`` and ``void`` settle an earlier one; ``budget`` sets what may
            be spent on a data set from then on.
        time: UTC, ISO 8601, from the clock of the machine; for people only.
        dataset: what the event was about; epsilon adds up per data set and unit.
        unit: whose presence the event hides.
        run: id of the run, or "".
        round: round number, or 0.
        event: of ``reserved``.
        about: number of the line that is settled.
        budget: of ``budget``.
        once: a key that may be booked only once, or "".
    """

    number: int
    kind: Kind
    time: str
    dataset: str
    unit: Unit
    run: str = ""
    round: int = 0
    event: Event | None = None
    about: int = 0
    budget: Budget | None = None
    once: str = ""

    def to_json(self) -> str:
        """Canonical JSON: the same line gives the same bytes."""
        return canonical_json(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Reads what :meth:`to_json` wrote.

        Raises:
            LedgerError: the text is no line of a ledger.
        """
        try:
            body: dict[str, Any] = json.loads(text)
            event, budget = body.pop("event"), body.pop("budget")
            if event is not None:
                event = Event(
                    **event
                    | {
                        "mechanism": Mechanism(event["mechanism"]),
                        "sampler": Sampler(event["sampler"]),
                        "relation": Relation(event["relation"]),
                    }
                )
            body["unit"] = Unit(body["unit"])
            return cls(**body, event=event, budget=None if budget is None else Budget(**budget))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, PlanError):
            raise LedgerError(
                "A line of the ledger cannot be read: the file was damaged or altered, restore it from a backup."
            ) from None

    def numbered(self, number: int) -> Entry:
        """The same line at another place."""
        return replace(self, number=number)


def link(previous: str, text: str) -> str:
    """The hash of a line: SHA-256 over the hash before it and its text, in hexadecimal."""
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()
