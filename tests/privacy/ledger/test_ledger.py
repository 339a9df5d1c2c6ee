import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from privacy.accounting import Event, epsilon, per_example
from privacy.ledger import Budget, Ledger
from privacy.ledger import store as store_module
from privacy.terms import Mechanism, Relation, Sampler, Unit
from umbel.errors import BudgetExceeded, LedgerError, PlanError

EVENT = Event(Mechanism.GAUSSIAN, Sampler.POISSON, Relation.ADD_REMOVE, 1.05, 64 / 650, 20, 20)
OTHER = Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, 9.0, participations=2, steps=2)
AT = {"dataset": "site-a/vqa", "unit": Unit.EXAMPLE}
OF_CLIENT = {"dataset": "site-a/vqa", "unit": Unit.CLIENT}
BUDGET = Budget(8.0, 1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "privacy.sqlite"


def test_a_reserved_event_is_spent_and_survives_reopening(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.spent(1e-5, **AT) == 0
        number = ledger.reserve(EVENT, run="r", round=3, **AT)
        assert ledger.spent(1e-5, **AT) == epsilon([EVENT], 1e-5)
        ledger.settle(number)
        head = ledger.head
    with Ledger.open(path, create=False) as ledger:
        assert ledger.head == head
        first, second = ledger.entries()
        assert (first.run, first.round, first.event, first.kind) == ("r", 3, EVENT, "reserved")
        assert (second.kind, second.about) == ("released", number)
        assert ledger.spent(1e-5, **AT) == epsilon([EVENT], 1e-5)
        assert ledger.verify() == 2


def test_spending_adds_up_per_data_set_and_unit(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for event in (EVENT, OTHER, EVENT):
            ledger.reserve(event, run="x", **AT)
        ledger.reserve(EVENT, dataset="else", unit=Unit.EXAMPLE)
        assert ledger.spent(1e-5, **AT) == epsilon([EVENT, OTHER, EVENT], 1e-5)
        ledger.reserve(OTHER, dataset="site-a/vqa", unit=Unit.CLIENT)
        assert ledger.spent(1e-5, **AT) == epsilon(per_example([EVENT, OTHER, EVENT], [OTHER]), 1e-5)
        assert ledger.spent(1e-5, **OF_CLIENT) == epsilon([OTHER], 1e-5)
        assert ledger.spent(1e-5, dataset="else", unit=Unit.EXAMPLE) == epsilon([EVENT], 1e-5)
        assert ledger.datasets() == (
            ("site-a/vqa", Unit.EXAMPLE),
            ("else", Unit.EXAMPLE),
            ("site-a/vqa", Unit.CLIENT),
        )


def test_void_gives_back_and_cannot_be_undone(path: Path) -> None:
    with Ledger.open(path) as ledger:
        number = ledger.reserve(EVENT, **AT)
        ledger.settle(number, "void")
        ledger.settle(number, "void")
        assert ledger.spent(1e-5, **AT) == 0
        with pytest.raises(LedgerError, match="cannot become released"):
            ledger.settle(number, "released")
        again = ledger.reserve(EVENT, **AT)
        ledger.settle(again)
        with pytest.raises(LedgerError, match="cannot become void"):
            ledger.settle(again, "void")
        with pytest.raises(LedgerError, match="no reserved event"):
            ledger.settle(999)
        with pytest.raises(LedgerError, match="expected 'released' or 'void'"):
            ledger.settle(again, "forgotten")  # type: ignore[arg-type]


def test_the_budget_is_kept_to_the_last_step_and_says_what_is_left(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for _ in range(8):
            ledger.reserve(EVENT, budget=BUDGET, **AT)
        with pytest.raises(BudgetExceeded, match=r"of the budget of 8 only 0\.\d+ is left") as caught:
            ledger.reserve(EVENT, budget=BUDGET, **AT)
        assert "\n" not in str(caught.value)
        assert epsilon([EVENT.times(9)], 1e-5) > 8.0
        assert ledger.remaining(BUDGET, **AT) == pytest.approx(8.0 - epsilon([EVENT.times(8)], 1e-5))
        assert len(ledger.entries()) == 8, "a refused event is not booked"
        with pytest.raises(BudgetExceeded):
            ledger.check(EVENT, BUDGET, **AT)
        ledger.check(EVENT, Budget(9.0, 1e-5), **AT)


def test_a_stored_budget_survives_restarts_and_binds_new_runs(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.set_budget(Budget(3.5, 1e-5), **AT)
        ledger.set_budget(Budget(3.5, 1e-5), **AT)
        assert len(ledger.entries()) == 1
        ledger.reserve(EVENT, run="first", **AT)
    with Ledger.open(path) as ledger:
        assert ledger.budget(**AT) == Budget(3.5, 1e-5)
        with pytest.raises(BudgetExceeded):
            ledger.reserve(EVENT, run="second", budget=Budget(1000.0, 1e-5), **AT)
        ledger.reserve(EVENT, dataset="else", unit=Unit.EXAMPLE)
        ledger.set_budget(Budget(8.0, 1e-5), **AT)
        ledger.reserve(EVENT, run="third", **AT)


def test_one_event_that_covers_many_rounds_is_booked_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        first = ledger.reserve(OTHER, once="run-1/noise", **AT)
        assert ledger.reserve(OTHER, once="run-1/noise", **AT) == first
        assert ledger.spent(1e-5, **AT) == epsilon([OTHER], 1e-5)
        with pytest.raises(LedgerError, match="another event"):
            ledger.reserve(EVENT, once="run-1/noise", **AT)
        assert ledger.reserve(OTHER, once="run-2/noise", **AT) != first


@pytest.mark.parametrize("first", Unit)
def test_two_units_are_one_budget_for_an_example(path: Path, first: Unit) -> None:
    """Each alone fits into the budget; together they do not, whichever comes first."""
    exchanged = Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.REPLACE_ONE, 2.0)
    second = Unit.CLIENT if first is Unit.EXAMPLE else Unit.EXAMPLE
    with Ledger.open(path) as ledger:
        for unit in Unit:
            ledger.set_budget(Budget(2.5, 1e-5), dataset="d", unit=unit)
        ledger.reserve(exchanged, dataset="d", unit=first)
        alone = ledger.spent(1e-5, dataset="d", unit=first)
        assert 1.9 < alone < 2
        with pytest.raises(BudgetExceeded, match=r"bring example-level epsilon to 2\.9"):
            ledger.reserve(exchanged, dataset="d", unit=second, budget=Budget(100.0, 1e-5))
        assert len(ledger.entries()) == 3, "a refused event is not booked"
        ledger.set_budget(Budget(4.0, 1e-5), dataset="d", unit=Unit.EXAMPLE)
        number = ledger.reserve(exchanged, dataset="d", unit=second)
        assert ledger.spent(1e-5, dataset="d", unit=Unit.EXAMPLE) > 2.9
        assert ledger.spent(1e-5, dataset="d", unit=Unit.CLIENT) == pytest.approx(alone)
        ledger.settle(number, "void")
        assert ledger.spent(1e-5, dataset="d", unit=Unit.EXAMPLE) == pytest.approx(alone)


def test_the_cost_of_a_client_level_release_for_an_example_is_refused_too(path: Path) -> None:
    """Add-remove of clients says half of what a replaced client, and so an example, costs."""
    added = Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, 2.0)
    with Ledger.open(path) as ledger:
        for unit in Unit:
            ledger.set_budget(Budget(3.0, 1e-5), dataset="d", unit=unit)
        with pytest.raises(BudgetExceeded, match="example-level"):
            ledger.reserve(added, dataset="d", unit=Unit.CLIENT)
        ledger.reserve(added, dataset="free", unit=Unit.CLIENT, budget=Budget(3.0, 1e-5))


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in ("DROP TRIGGER line_kept", "DROP TRIGGER line_fixed", *statements):
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE line SET body = replace(body, '1.05', '9.05') WHERE number = 2",
        "UPDATE line SET hash = replace(hash, 'a', 'b')",
        "DELETE FROM line WHERE number = 3",
        "DELETE FROM line WHERE number = 1",
        "DELETE FROM line",
        "UPDATE line SET number = number + 10",
        "UPDATE head SET number = 2",
        "DELETE FROM head",
        "UPDATE line SET body = 'x' WHERE number = 3",
    ],
)
def test_every_alteration_by_hand_is_noticed(path: Path, statement: str) -> None:
    with Ledger.open(path) as ledger:
        for _ in range(3):
            ledger.reserve(EVENT, **AT)
    tamper(path, statement)
    with pytest.raises(LedgerError, match="restore") as caught:
        Ledger.open(path)
    assert "\n" not in str(caught.value)


def test_an_alteration_under_an_open_handle_is_noticed_by_verify(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(EVENT, **AT)
        tamper(path, "UPDATE line SET body = replace(body, '1.05', '9.05')")
        with pytest.raises(LedgerError, match="does not follow"):
            ledger.verify()


def test_lines_are_append_only_in_sqlite_itself(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(EVENT, **AT)
    connection = sqlite3.connect(path)
    for statement in ("DELETE FROM line", "UPDATE line SET body = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_newer_schema_is_refused(path: Path) -> None:
    Ledger.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {store_module.SCHEMA + 1}")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="update umbel"):
        Ledger.open(path)


def test_files_that_are_no_ledgers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        Ledger.open(tmp_path / "missing.sqlite", create=False)
    (tmp_path / "text").write_text("no database" * 200)
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "text")
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="no ledger of umbel"):
        Ledger.open(tmp_path / "other.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(tmp_path / "file" / "below.sqlite")
    with pytest.raises(PlanError, match="budget"):
        Budget(float("inf"), 1e-5)
    with pytest.raises(PlanError, match="delta"):
        Budget(1.0, 0.0)


def _book(path: Path, count: int, budget: Budget | None) -> None:
    with Ledger.open(path) as ledger:
        for _ in range(count):
            try:
                ledger.reserve(EVENT, budget=budget, run=str(os.getpid()), **AT)
            except BudgetExceeded:
                return


def test_several_processes_share_a_ledger_and_its_budget(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for count, budget, expected in ((6, None, 24), (6, Budget(epsilon([EVENT.times(30)], 1e-5), 1e-5), 30)):
        workers = [fork.Process(target=_book, args=(path, count, budget)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        with Ledger.open(path, create=False) as ledger:
            assert ledger.verify() == expected
            assert [entry.number for entry in ledger.entries()] == list(range(1, expected + 1))


def test_a_handle_survives_a_fork(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.reserve(EVENT, **AT)
    worker = multiprocessing.get_context("fork").Process(target=lambda: ledger.reserve(EVENT, **AT))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    ledger.reserve(EVENT, **AT)
    assert ledger.verify() == 3
    ledger.close()


def _release_until_killed(path: Path, released: Path, fatal: int) -> None:
    """Reserves, releases and settles over and over; dies by SIGKILL before its ``fatal``-th SQL statement."""
    ledger = Ledger.open(path)
    count = 0

    def trace(_: str) -> None:
        nonlocal count
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger._store._connection.set_trace_callback(trace)
    with released.open("ab") as stream:
        while True:
            number = ledger.reserve(EVENT, **AT)
            stream.write(b"x")
            stream.flush()
            ledger.settle(number)


def test_killed_between_any_two_writes_epsilon_is_never_under_reported(path: Path, tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.touch()
    fork = multiprocessing.get_context("fork")
    booked_before = 0
    for fatal in range(1, 31):
        worker = fork.Process(target=_release_until_killed, args=(path, released, fatal))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        with Ledger.open(path, create=False) as ledger:
            booked = ledger.events(**AT)
            really = released.stat().st_size
            assert len(booked) >= really, f"killed before statement {fatal}"
            assert len(booked) >= booked_before, "nothing booked is lost"
            booked_before = len(booked)
            if really:
                assert ledger.spent(1e-5, **AT) >= epsilon([EVENT.times(really)], 1e-5)
    assert released.stat().st_size > 30


def test_a_failed_write_books_nothing_and_the_ledger_stays_usable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(EVENT, **AT)
        with monkeypatch.context() as patch:
            patch.setattr(ledger._store, "hash", "0" * 64)
            with pytest.raises(LedgerError):
                ledger.reserve(EVENT, **AT)
        assert ledger.verify() == 1
        ledger.reserve(EVENT, **AT)
        assert ledger.verify() == 2
