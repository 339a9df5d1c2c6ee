"""What one ledger knows that another does not: how a backup comes back without lowering what was spent."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from privacy.ledger.entry import Entry
from privacy.ledger.store import Store
from umbel.errors import LedgerError


@dataclass(frozen=True, slots=True)
class Salvage:
    """What could be read of a ledger that may be damaged.

    Attributes:
        entries: every line that reads as one, whether or not the chain holds.
        whole: whether that is all there ever was, as its chain and head prove.
    """

    entries: tuple[Entry, ...]
    whole: bool


def salvage(path: Path) -> Salvage:
    """Reads what can be read; never raises for a damaged file, and never changes it. A missing file is not whole."""
    if not path.is_file():
        return Salvage((), False)
    try:
        store = Store(path, create=False)
        try:
            return Salvage(tuple(store.entries), True)
        finally:
            store.close()
    except LedgerError:
        pass
    found: list[Entry] = []
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            for (body,) in connection.execute("SELECT body FROM line ORDER BY number"):
                try:
                    found.append(Entry.from_json(body))
                except LedgerError:
                    continue
        finally:
            connection.close()
    except sqlite3.Error:
        pass  # what was read so far counts
    return Salvage(tuple(found), False)


def absorb(path: Path, others: Iterable[Entry]) -> int:
    """Books in the ledger at ``path`` whatever ``others`` booked and it did not; returns how many lines that were.

    Both ledgers may have gone on from one point (a copy was put back, then both were used). Every event that either
    booked counts as spent, once: two lines are the same event if all but their number and the hash is equal, time
    included. Nothing becomes less: what the other voided stays booked here, and of two budgets of a data set the
    smaller one holds from now on. Absorbing twice books nothing twice.

    Guarantee: for every data set, unit and delta, ``spent`` afterwards is at least what either ledger said before.

    Raises:
        LedgerError: the ledger at ``path`` cannot be trusted or written.
    """
    others = tuple(others)
    store = Store(path, create=True)
    try:
        with store.writing():
            mine, theirs = _booked(store.entries), _booked(others)
            added = [entry for entry, count in (theirs - mine).items() for _ in range(count)]
            for entry in sorted(added, key=lambda line: (line.time, line.run, line.round)):
                store.append(entry)
            smaller = _smaller_budgets(store.entries, others)
            for entry in smaller:
                store.append(entry)
            return len(added) + len(smaller)
    finally:
        store.close()


def _booked(entries: Iterable[Entry]) -> Counter[Entry]:
    """Reserved events that were not voided, without what is particular to one chain."""
    lines = tuple(entries)
    void = {entry.about for entry in lines if entry.kind == "void"}
    return Counter(entry.numbered(0) for entry in lines if entry.kind == "reserved" and entry.number not in void)


def _smaller_budgets(entries: list[Entry], others: tuple[Entry, ...]) -> list[Entry]:
    """Budgets that the others set last and that allow less than the own last one, in epsilon or in delta."""
    own, found = _budgets(entries), []
    for key, line in _budgets(others).items():
        mine = own.get(key)
        if mine is None:
            found.append(line.numbered(0))
            continue
        assert mine.budget is not None
        assert line.budget is not None
        least = replace(
            mine.budget,
            epsilon=min(mine.budget.epsilon, line.budget.epsilon),
            delta=min(mine.budget.delta, line.budget.delta),
        )
        if least != mine.budget:
            found.append(replace(line, number=0, budget=least))
    return found


def _budgets(entries: Iterable[Entry]) -> dict[tuple[str, str], Entry]:
    return {(entry.dataset, entry.unit.value): entry for entry in entries if entry.kind == "budget"}
