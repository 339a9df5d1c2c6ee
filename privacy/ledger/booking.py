"""Booking what a plan is about to release."""

from __future__ import annotations

from privacy.ledger.budget import Budget
from privacy.ledger.ledger import Ledger
from privacy.plan import Mechanism, PrivacyPlan


def book(ledger: Ledger, plan: PrivacyPlan, *, dataset: str, run: str, round: int, steps: int | None = None) -> int:
    """Reserves the next release of ``plan`` under the plan's budget and the data set's own.

    Args:
        ledger: of the site (example unit) or of the coordinator (client unit).
        plan: what is about to run.
        dataset: id of the data set, stable over runs.
        run: id of the run.
        round: round number, 1-based.
        steps: releases until the next upload, by default ``plan.steps_per_round``. Banded noise is booked whole
            in the run's first round and not again.

    Returns:
        The line's number, for ``ledger.settle``.

    Raises:
        BudgetExceeded: the release would overspend; nothing was booked.
        LedgerError: the ledger cannot be trusted or written, or the run's banded plan has changed.
    """
    banded = plan.mechanism is Mechanism.BANDED
    events = plan.events() if banded else plan.events(plan.steps_per_round if steps is None else steps)
    return ledger.reserve(
        events,
        dataset=dataset,
        unit=plan.unit,
        run=run,
        round=round,
        budget=Budget(plan.epsilon_budget, plan.delta),
        once=f"{run}/banded" if banded else "",
    )
