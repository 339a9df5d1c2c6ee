"""Reserve before release; refuse what would overspend."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from privacy.accounting import Event, epsilon, epsilon_bound, per_example
from privacy.ledger.budget import Budget
from privacy.ledger.entry import Entry
from privacy.ledger.store import Store
from privacy.terms import Unit
from umbel.errors import BudgetExceeded, LedgerError


class Ledger:
    """The ledger of one site (example unit) or of the coordinator (client unit).

    Guarantee: an event counts as spent from the moment :meth:`reserve` returns, when it is on disk. A process
    killed at any moment has therefore booked at least what it released. Only :meth:`settle` with ``void`` takes
    an event back, for the caller who knows that nothing noised by it left the process.

    The two units are not two budgets. What hides a client hides each of its examples (:func:`per_example`), so the
    account of the example unit counts every event of the data set. The account of the client unit counts client-level
    events alone: example-level noise puts no useful bound on a whole client.

    The hash chain shows alteration by hand and lost lines, not the rewriting of the whole file by someone who
    knows the format: whoever needs that keeps :attr:`head` elsewhere (for example in a signed audit log).
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def open(cls, path: Path | str, *, create: bool = True) -> Ledger:
        """Opens and verifies a ledger, making a new one where there is none.

        Args:
            path: file; parents are made when ``create``.
            create: False refuses a missing file.

        Raises:
            LedgerError: no ledger, a newer schema, or an altered, lost or unreadable line.
        """
        return cls(Store(Path(path), create=create))

    def close(self) -> None:
        """Closes the file."""
        self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The file."""
        return self._store.path

    @property
    def head(self) -> str:
        """Hash of the last line, 64 hexadecimal digits; zeros for an empty ledger."""
        with self._store.reading():
            return self._store.hash

    def entries(self) -> tuple[Entry, ...]:
        """All lines, oldest first."""
        with self._store.reading():
            return tuple(self._store.entries)

    def verify(self) -> int:
        """Reads the whole chain again and returns its number of lines.

        Raises:
            LedgerError: an altered, moved or lost line.
        """
        self._store.reread()
        return len(self.entries())

    def reserve(
        self,
        event: Event | Iterable[Event],
        *,
        dataset: str,
        unit: Unit,
        run: str = "",
        round: int = 0,
        budget: Budget | None = None,
        once: str = "",
    ) -> int:
        """Books one event as spent, synced to disk before this returns; call it *before* the release.

        Args:
            event: what is about to happen, e.g. ``plan.events(plan.steps_per_round)`` (exactly one event).
            dataset: id of the data set, stable over runs and coordinators: epsilon adds up under it.
            unit: whose presence the event hides.
            run: id of the run.
            round: round number.
            budget: an additional limit of this run, in ``unit``; a budget set for the data set always holds too, and
                for a client-level event that of the example unit as well.
            once: a key that is booked only the first time, for releases that one event covers together (banded
                noise: ``once=f"{run}/noise"``); later calls return the first line's number and book nothing.

        Returns:
            The line's number, for :meth:`settle`.

        Raises:
            BudgetExceeded: epsilon would exceed a budget; nothing was booked, so release nothing.
            LedgerError: the ledger cannot be trusted or written, or ``once`` came with a different event.
        """
        events = (event,) if isinstance(event, Event) else tuple(event)
        if len(events) != 1:
            raise LedgerError(
                f"{len(events)} events were to be booked in one line, expected exactly 1: "
                "book each on its own, and book nothing for 0 steps."
            )
        booked = events[0]
        with self._store.writing():
            if once:
                for entry in self._reserved(dataset, unit):
                    if entry.once == once:
                        if entry.event != booked:
                            raise LedgerError(
                                f"The key {once!r} was booked with another event: a run's plan cannot change, start a "
                                "new run."
                            )
                        return entry.number
            self._allow(booked, dataset, unit, budget)
            entry = Entry(0, "reserved", _now(), dataset, unit, run, round, event=booked, once=once)
            return self._store.append(entry).number

    def settle(self, number: int, outcome: Literal["released", "void"] = "released") -> None:
        """Notes what became of a reserved event; settling alike twice does nothing.

        ``void`` gives the event back. Only for the caller who knows that nothing noised by it left the process
        (training failed before any output existed): when in doubt, leave it reserved, which counts as spent.

        Raises:
            LedgerError: no such reserved line, another outcome than before, or an unknown outcome.
        """
        if outcome not in ("released", "void"):
            raise LedgerError(f"An event cannot be settled as {outcome!r}: expected 'released' or 'void'.")
        with self._store.writing():
            entries = self._store.entries
            if not (1 <= number <= len(entries) and entries[number - 1].kind == "reserved"):
                raise LedgerError(f"Line {number} of the ledger is no reserved event: settle what reserve returned.")
            for entry in entries:
                if entry.about == number:
                    if entry.kind != outcome:
                        raise LedgerError(
                            f"Line {number} of the ledger is settled as {entry.kind}: it cannot become {outcome}."
                        )
                    return
            of = entries[number - 1]
            self._store.append(Entry(0, outcome, _now(), of.dataset, of.unit, of.run, of.round, about=number))

    def set_budget(self, budget: Budget, *, dataset: str, unit: Unit) -> None:
        """Sets what may be spent on a data set from now on; survives restarts and is never reset by a run.

        The owner of the data may lower or raise it; every change stays in the chain.
        """
        with self._store.writing():
            if self._budget(dataset, unit) != budget:
                self._store.append(Entry(0, "budget", _now(), dataset, unit, budget=budget))

    def budget(self, *, dataset: str, unit: Unit) -> Budget | None:
        """The data set's budget, None where none was set."""
        with self._store.reading():
            return self._budget(dataset, unit)

    def datasets(self) -> tuple[tuple[str, Unit], ...]:
        """Data sets and units that have lines, in order of appearance."""
        return tuple(dict.fromkeys((entry.dataset, entry.unit) for entry in self.entries()))

    def events(self, *, dataset: str, unit: Unit) -> tuple[Event, ...]:
        """What counts as spent in ``unit``: every reserved event that was not voided, see the class."""
        with self._store.reading():
            return self._spent(dataset, unit)

    def spent(self, delta: float, *, dataset: str, unit: Unit) -> float:
        """Upper bound on epsilon at ``delta`` over everything booked; 0 for an unknown data set."""
        return epsilon(self.events(dataset=dataset, unit=unit), delta)

    def remaining(self, budget: Budget, *, dataset: str, unit: Unit) -> float:
        """Epsilon left of ``budget``, at least 0."""
        return max(0.0, budget.epsilon - self.spent(budget.delta, dataset=dataset, unit=unit))

    def foreseen(self, events: Iterable[Event], *, dataset: str, unit: Unit, account: Unit) -> tuple[Event, ...]:
        """What would count in ``account`` if ``events`` were booked for ``unit`` too; books nothing."""
        with self._store.reading():
            return self._spent(dataset, account, *((unit, event) for event in events))

    def check(self, event: Event, budget: Budget, *, dataset: str, unit: Unit) -> None:
        """Raises BudgetExceeded when ``event`` would exceed ``budget`` in ``unit``; books nothing."""
        with self._store.reading():
            self._refuse(event, dataset, unit, unit, budget)

    def _reserved(self, dataset: str, unit: Unit) -> list[Entry]:
        void = {entry.about for entry in self._store.entries if entry.kind == "void"}
        return [
            entry
            for entry in self._store.entries
            if entry.kind == "reserved" and entry.number not in void and (entry.dataset, entry.unit) == (dataset, unit)
        ]

    def _spent(self, dataset: str, unit: Unit, *more: tuple[Unit, Event]) -> tuple[Event, ...]:
        """What counts in the account of ``unit``, and would with ``more``, each with the unit that it is booked for."""
        found: dict[Unit, list[Event]] = {Unit.EXAMPLE: [], Unit.CLIENT: []}
        for kind, events in found.items():
            events += [entry.event for entry in self._reserved(dataset, kind) if entry.event is not None]
            events += [event for booked, event in more if booked is kind]
        if unit is Unit.EXAMPLE:
            return per_example(found[Unit.EXAMPLE], found[Unit.CLIENT])
        return tuple(found[unit])

    def _budget(self, dataset: str, unit: Unit) -> Budget | None:
        for entry in reversed(self._store.entries):
            if entry.kind == "budget" and (entry.dataset, entry.unit) == (dataset, unit):
                return entry.budget
        return None

    def _allow(self, event: Event, dataset: str, unit: Unit, budget: Budget | None) -> None:
        for account, limit in (
            (unit, budget),
            (unit, self._budget(dataset, unit)),
            (Unit.EXAMPLE, self._budget(dataset, Unit.EXAMPLE) if unit is Unit.CLIENT else None),
        ):
            if limit is not None:
                self._refuse(event, dataset, unit, account, limit)

    def _refuse(self, event: Event, dataset: str, unit: Unit, account: Unit, budget: Budget) -> None:
        """Raises BudgetExceeded when ``event``, booked for ``unit``, would bring ``account`` above ``budget``."""
        # The quick bound settles most calls in microseconds; the tight one is asked only near the budget.
        with_it = self._spent(dataset, account, (unit, event))
        if epsilon_bound(with_it, budget.delta) <= budget.epsilon:
            return
        after = epsilon(with_it, budget.delta)
        if after <= budget.epsilon:
            return
        before = epsilon(self._spent(dataset, account), budget.delta)
        raise BudgetExceeded(
            f"The next release on {dataset!r} would bring {account.value}-level epsilon to {after:.3f} at delta "
            f"{budget.delta:g}, and of the budget of {budget.epsilon:g} only {max(0.0, budget.epsilon - before):.3f} "
            "is left: nothing was released; plan fewer steps or more noise, or let the owner of the data raise the "
            "budget."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
