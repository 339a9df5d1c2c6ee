import dataclasses
from pathlib import Path

import pytest

from privacy.ledger import Ledger, book
from privacy.plan import Mechanism, Place, PrivacyPlan, Relation, Sampler, Unit
from umbel.errors import BudgetExceeded, LedgerError

PLAN = PrivacyPlan(
    Unit.EXAMPLE, Relation.ADD_REMOVE, Sampler.POISSON, 0.1, 100, 1.0, 1.0, Place.STEP, 1e-5, 8.0,
    population=640, steps_per_round=20,
).calibrated()  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "l.sqlite") as opened:
        yield opened


def spent(ledger: Ledger) -> float:
    return ledger.spent(1e-5, dataset="d", unit=Unit.EXAMPLE)


def test_the_planned_rounds_fit_the_budget_exactly_and_the_next_does_not(ledger: Ledger) -> None:
    for number in range(1, 6):
        book(ledger, PLAN, dataset="d", run="r", round=number)
        assert spent(ledger) == PLAN.epsilon(20 * number)
    with pytest.raises(BudgetExceeded):
        book(ledger, PLAN, dataset="d", run="r", round=6)
    with pytest.raises(BudgetExceeded):
        book(ledger, PLAN, dataset="d", run="a new run", round=1)
    book(ledger, PLAN, dataset="another", run="r", round=1)


def test_fewer_steps_cost_less(ledger: Ledger) -> None:
    book(ledger, PLAN, dataset="d", run="r", round=1, steps=5)
    assert spent(ledger) == PLAN.epsilon(5)
    with pytest.raises(LedgerError, match="0 steps"):
        book(ledger, PLAN, dataset="d", run="r", round=2, steps=0)


def test_banded_noise_is_booked_once_a_run(ledger: Ledger) -> None:
    plan = dataclasses.replace(PLAN, sampler=Sampler.CYCLIC, mechanism=Mechanism.BANDED, bands=4).calibrated()
    lines = {book(ledger, plan, dataset="d", run="r", round=number) for number in range(1, 6)}
    assert len(lines) == 1
    assert spent(ledger) == plan.epsilon()
    with pytest.raises(BudgetExceeded):
        book(ledger, plan, dataset="d", run="another", round=1)


def test_shuffled_rounds_add_up_to_the_plan(ledger: Ledger) -> None:
    plan = dataclasses.replace(PLAN, sampler=Sampler.SHUFFLED, steps_per_round=25).calibrated()
    for number in range(1, 5):
        book(ledger, plan, dataset="d", run="r", round=number)
    assert spent(ledger) == plan.epsilon() <= 8.0
