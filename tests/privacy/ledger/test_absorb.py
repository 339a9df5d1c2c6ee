"""Two ledgers that went on from one point: together they show at least what either showed."""

import shutil
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting import Event
from privacy.ledger import Budget, Ledger
from privacy.ledger.absorb import absorb, salvage
from privacy.terms import Mechanism, Relation, Sampler, Unit

DELTA = 1e-5


def event(noise=8.0):
    return Event(Mechanism.GAUSSIAN, Sampler.FULL, Relation.ADD_REMOVE, noise)


def reserve(path, dataset="a", noise=8.0, round=1, once=""):
    with Ledger.open(path) as ledger:
        return ledger.reserve(event(noise), dataset=dataset, unit=Unit.EXAMPLE, run="r", round=round, once=once)


def settle(path, number, outcome):
    with Ledger.open(path) as ledger:
        ledger.settle(number, outcome)


def spent(path, dataset="a"):
    with Ledger.open(path, create=False) as ledger:
        ledger.verify()
        return ledger.spent(DELTA, dataset=dataset, unit=Unit.EXAMPLE), len(
            ledger.events(dataset=dataset, unit=Unit.EXAMPLE)
        )


def copied(source, target):
    with sqlite3.connect(source) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(source, target)


def test_both_branches_count_and_twice_is_once(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    reserve(mine)
    copied(mine, theirs)
    reserve(mine, round=2)
    reserve(theirs, round=2, noise=5.0)
    reserve(theirs, round=3)
    assert absorb(mine, salvage(theirs).entries) == 2
    assert spent(mine)[1] == 4
    assert spent(mine)[0] > max(spent(theirs)[0], 0)
    assert absorb(mine, salvage(theirs).entries) == 0
    assert spent(mine)[1] == 4


def test_an_older_copy_changes_nothing(tmp_path):
    mine, old = tmp_path / "mine", tmp_path / "old"
    reserve(mine)
    copied(mine, old)
    reserve(mine, round=2)
    before = spent(mine)
    assert absorb(mine, salvage(old).entries) == 0
    assert spent(mine) == before


def test_what_the_other_voided_stays_booked_and_what_it_booked_and_voided_does_not_count(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    first = reserve(mine)
    copied(mine, theirs)
    settle(theirs, first, "void")
    settle(theirs, reserve(theirs, round=2), "void")
    assert absorb(mine, salvage(theirs).entries) == 0
    assert spent(mine)[1] == 1


def test_what_this_one_voided_counts_again_where_the_other_kept_it(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    first = reserve(mine)
    copied(mine, theirs)
    settle(mine, first, "void")
    assert absorb(mine, salvage(theirs).entries) == 1
    assert spent(mine)[1] == 1


def test_of_two_budgets_the_smaller_holds(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for path, epsilon, delta in ((mine, 8.0, 1e-6), (theirs, 3.0, 1e-5)):
        with Ledger.open(path) as ledger:
            ledger.set_budget(Budget(epsilon, delta), dataset="a", unit=Unit.EXAMPLE)
            ledger.set_budget(Budget(1.0, 1e-5), dataset=path.name, unit=Unit.CLIENT)
    assert absorb(mine, salvage(theirs).entries) == 2
    with Ledger.open(mine) as ledger:
        assert ledger.budget(dataset="a", unit=Unit.EXAMPLE) == Budget(3.0, 1e-6)
        assert ledger.budget(dataset="theirs", unit=Unit.CLIENT) == Budget(1.0, 1e-5)
    assert absorb(mine, salvage(theirs).entries) == 0


def test_equal_events_in_one_ledger_count_as_often_as_they_happened(tmp_path, monkeypatch):
    import privacy.ledger.ledger as module

    monkeypatch.setattr(module, "_now", lambda: "2026-01-01T00:00:00.000+00:00")
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    reserve(mine)
    for _ in range(3):
        reserve(theirs)
    assert absorb(mine, salvage(theirs).entries) == 2
    assert spent(mine)[1] == 3


def test_a_damaged_ledger_gives_what_can_be_read(tmp_path):
    path = tmp_path / "ledger"
    for number in range(3):
        reserve(path, round=number + 1)
    assert salvage(path).whole
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER line_fixed")
        connection.execute("UPDATE line SET body = 'x' WHERE number = 2")
    found = salvage(path)
    assert not found.whole
    assert [entry.round for entry in found.entries] == [1, 3]
    for other in ("missing", "text"):
        (tmp_path / "text").write_text("no database")
        assert salvage(tmp_path / other) == type(found)((), False)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    common=st.lists(st.sampled_from([4.0, 8.0]), max_size=3),
    mine=st.lists(st.sampled_from([4.0, 8.0]), max_size=3),
    theirs=st.lists(st.sampled_from([4.0, 8.0]), max_size=3),
    voided=st.sets(st.integers(1, 6)),
)
def test_spent_never_falls(tmp_path_factory, common, mine, theirs, voided):
    folder = tmp_path_factory.mktemp("ledgers")
    a, b = folder / "a", folder / "b"
    Ledger.open(a).close()
    for noise in common:
        reserve(a, noise=noise)
    copied(a, b)
    for path, events in ((a, mine), (b, theirs)):
        for number, noise in enumerate(events):
            reserve(path, noise=noise, round=10 + number)
    for number in voided:
        if number <= len(common) + len(theirs):
            settle(b, number, "void")
    before, other = spent(a), spent(b)
    absorb(a, salvage(b).entries)
    after = spent(a)
    assert after[0] >= max(before[0], other[0]) - 1e-12
    assert after[1] <= len(common) + len(mine) + len(theirs)


def test_a_ledger_that_cannot_be_trusted_takes_nothing_in(tmp_path):
    from umbel.errors import LedgerError

    (tmp_path / "mine").write_text("no database")
    reserve(tmp_path / "theirs")
    with pytest.raises(LedgerError):
        absorb(tmp_path / "mine", salvage(tmp_path / "theirs").entries)
