"""What the log knows of the ledger: how long it was and how it ended, so that neither can be put back alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.agent.audit_log import read_lines
from client.agent.policy import SitePolicy
from privacy.ledger import Budget, Entry, Ledger
from privacy.ledger.entry import GENESIS, link
from privacy.terms import Unit
from umbel.errors import LedgerError


@dataclass(frozen=True, slots=True)
class Anchor:
    """The end of a ledger at some moment: its number of lines and the hash of the last."""

    lines: int = 0
    head: str = GENESIS

    def record(self) -> dict[str, Any]:
        """For a line of the log."""
        return {"lines": self.lines, "head": self.head}


def open_books(path: Path, policy: SitePolicy) -> None:
    """Makes the ledger where there is none, and sets the budgets that the site's owner has written down.

    Raises:
        LedgerError: the ledger that is there cannot be trusted.
    """
    with Ledger.open(path) as ledger:
        for data in policy.data:
            if data.epsilon > 0:
                for unit in (Unit.EXAMPLE, Unit.CLIENT):
                    ledger.set_budget(Budget(data.epsilon, data.delta), dataset=data.name, unit=unit)


def anchor(path: Path, known: Anchor) -> tuple[Anchor, tuple[Entry, ...]]:
    """The ledger's end now, and the lines that came since ``known``.

    Raises:
        LedgerError: the ledger is missing, was altered, or does not go on from ``known``: it was put back or replaced.
    """
    with Ledger.open(path, create=False) as ledger:
        entries, head = ledger.entries(), ledger.head
    digest = GENESIS
    for entry in entries[: known.lines]:
        digest = link(digest, entry.to_json())
    if len(entries) < known.lines or digest != known.head:
        raise LedgerError(
            f"The ledger {path} does not go on from the {known.lines} lines that the site's log knows: it was put back "
            "to an older copy or replaced; restore it from the backup, nothing is released."
        )
    return Anchor(len(entries), head), entries[known.lines :]


def last_anchor(log: Path) -> Anchor:
    """The newest end of the ledger that the log tells of; that of an empty ledger when it tells of none."""
    found = Anchor()
    for line in read_lines(log):
        noted = line.get("ledger")
        if isinstance(noted, dict):
            found = Anchor(int(noted["lines"]), str(noted["head"]))
    return found


def costs(entries: tuple[Entry, ...]) -> list[dict[str, Any]]:
    """What new lines of the ledger say, for the log: each release that was paid for."""
    return [
        {
            "line": entry.number,
            "data": entry.dataset,
            "unit": entry.unit.value,
            "mechanism": entry.event.mechanism.value,
            "noise": entry.event.noise_multiplier,
            "rate": entry.event.sampling_rate,
            "steps": entry.event.steps,
        }
        for entry in entries
        if entry.kind == "reserved" and entry.event is not None
    ]
