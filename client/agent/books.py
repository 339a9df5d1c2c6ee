"""What the log knows of the ledger: how long it was and how it ended, so that neither can be put back alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.agent.audit_log import AuditLog, Head, Signer, read_lines
from client.agent.policy import SitePolicy
from privacy.ledger import Budget, Entry, Ledger
from privacy.ledger.entry import GENESIS, link
from privacy.terms import Unit
from umbel.errors import LedgerError, SiteError


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
    """The newest end of the ledger that the log tells of; that of an empty ledger when it tells of none.

    Raises:
        SiteError: a line cannot be read.
    """
    found = Anchor()
    for end in _anchors(log):
        found = end
    return found


def require_log(log: Path, ledger: Path) -> None:
    """A log that was deleted is known by the ledger: what was spent is spent in a round, and every round is logged.

    Raises:
        SiteError: the ledger holds releases, and the log is not there or tells of none.
        LedgerError: the ledger cannot be trusted.
    """
    lines = _unlogged(log, ledger)
    if lines:
        raise SiteError(
            f"The ledger {ledger} holds {lines} lines and the log {log} tells of none of them, so it was deleted or "
            "begun anew: restore it from the backup, or say with umbel site serve --accept-loss that it is lost."
        )


def accept_loss(log: Path, ledger: Path, signer: Signer, *, person: str) -> Head:
    """Begins a new log after a loss, with a line that says so, who said it, and how long the ledger was.

    Raises:
        SiteError: nothing is lost, or the log cannot be written.
        LedgerError: the ledger cannot be trusted.
    """
    if not _unlogged(log, ledger):
        raise SiteError(f"The log {log} is not lost: leave --accept-loss out.")
    with Ledger.open(ledger, create=False) as book:
        end = Anchor(len(book.entries()), book.head)
    return AuditLog(log, signer).append("accepted", loss="log", person=person, ledger=end.record())


def _unlogged(log: Path, ledger: Path) -> int:
    """Lines of a ledger with releases whose log tells of none; else 0."""
    if not ledger.exists():
        return 0
    with Ledger.open(ledger, create=False) as book:
        entries = book.entries()
    spent = any(entry.kind == "reserved" for entry in entries)
    return len(entries) if spent and not any(end.lines for end in _anchors(log)) else 0


def _anchors(log: Path) -> Iterator[Anchor]:
    for line in read_lines(log):
        noted = line.get("ledger")
        if noted is None:
            continue
        try:
            lines, head = noted["lines"], noted["head"]
            if type(lines) is not int or type(head) is not str or lines < 0:
                raise ValueError("types")
        except (ValueError, TypeError, KeyError):
            raise SiteError(
                f"A line of the log {log} does not say how long the ledger was: it was altered; restore the log from "
                "the backup and find out who changed it."
            ) from None
        yield Anchor(lines, head)


def costs(entries: tuple[Entry, ...]) -> list[dict[str, Any]]:
    """What new lines of the ledger say, for the log: each release that was paid for, and not given back at once."""
    void = {entry.about for entry in entries if entry.kind == "void"}
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
        if entry.kind == "reserved" and entry.event is not None and entry.number not in void
    ]
