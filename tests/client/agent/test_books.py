"""One budget over the lifetime of a data set, whatever unit a run hides; and a failure before anything was made."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from client.agent.agent import Agent
from client.agent.audit_log import read_lines
from client.agent.desk import budgets, verify_books
from tests.client.agent.houses import NOISED, call_for, enrol, make_house, order_for, policy_for
from umbel.cli.site import app
from umbel.errors import BudgetExceeded, SiteError

IN_STEPS = {"privacy__unit": "example", "privacy__place": "step"}
IN_UPDATE = {
    "privacy__unit": "client",
    "privacy__place": "update",
    "privacy__sampler": "full",
    "privacy__relation": "replace-one",
}
RUN = {"privacy__epsilon": 2.9, "privacy__delta": 1e-3, "federation__rounds": 2}


@pytest.fixture
def agent(agent_root, tmp_path):
    def make(epsilon=3.0):
        table = policy_for(agent_root, runs__privacy=["step", "update"])
        table["data"][1] |= {"epsilon": epsilon, "delta": 1e-3}
        house = make_house(tmp_path / "site", table)
        enrol([house])
        return Agent(house)

    return make


def rows(agent):
    return {row["unit"]: row for row in budgets(agent.house) if row["data"].endswith(NOISED)}


def both_rounds(agent, call, root):
    for number in (1, 2):
        agent.train(call, order_for(root, number))


@pytest.mark.parametrize(("first", "second"), [(IN_STEPS, IN_UPDATE), (IN_UPDATE, IN_STEPS)])
def test_two_units_cannot_spend_the_budget_of_a_line_twice(agent, agent_root, first, second):
    made = agent()
    both_rounds(made, call_for(agent_root, run="a", **first, **RUN), agent_root)
    before = rows(made)
    assert before["example"]["epsilon"] == pytest.approx(2.9, abs=0.02)
    with pytest.raises(BudgetExceeded, match="bring example-level epsilon to"):
        both_rounds(made, call_for(agent_root, run="b", **second, **RUN), agent_root)
    after = rows(made)
    assert after["example"]["epsilon"] <= 3.0
    assert after["client"]["epsilon"] <= after["example"]["epsilon"]


def test_the_ledger_of_a_site_says_what_the_client_row_leaves_out(agent, agent_root):
    made = agent(epsilon=20.0)
    for name, unit, most in (("a", IN_UPDATE, 2.9), ("b", IN_STEPS, 6.0)):
        assert "client row counts" not in CliRunner().invoke(app, ["ledger", str(made.house.folder)]).output
        run = unit | RUN | {"privacy__epsilon": most}
        made.train(call_for(agent_root, run=name, **run), order_for(agent_root))
    found = rows(made)
    assert (found["example"]["releases"], found["client"]["releases"]) == (2, 1)
    assert found["example"]["epsilon"] > found["client"]["epsilon"] > 0
    said = CliRunner().invoke(app, ["ledger", str(made.house.folder)])
    assert "noised: the client row counts client-level releases alone" in said.output


class NoRoom:
    """A watch that ends paid work as the limit of memory does."""

    def check(self, paid):
        if paid:
            raise SiteError("The work holds 9 MB and this site allows 1.")


def failing(call):
    return replace(call, watch=NoRoom())


def test_a_training_that_failed_gives_its_booking_back(agent, agent_root):
    made = agent(epsilon=20.0)
    call = call_for(agent_root, **IN_STEPS, **RUN)
    for _ in range(4):
        with pytest.raises(SiteError, match="9 MB"):
            made.train(failing(call), order_for(agent_root))
        assert rows(made)["example"]["releases"] == 0
    assert rows(made)["example"]["epsilon"] == 0
    made.train(call, order_for(agent_root))
    assert rows(made)["example"]["releases"] == 1
    verify_books(made.house)
    lines = [line for line in read_lines(made.house.log) if line.get("cost")]
    assert [(line["kind"], len(line["cost"])) for line in lines] == [("left", 1)], "what was given back cost nothing"


def test_a_later_failure_leaves_what_was_released_spent(agent, agent_root):
    made = agent(epsilon=20.0)
    call = call_for(agent_root, **IN_STEPS, **RUN)
    made.train(call, order_for(agent_root, 1))
    spent = rows(made)["example"]["epsilon"]
    with pytest.raises(SiteError, match="9 MB"):
        made.train(failing(call), order_for(agent_root, 2))
    assert rows(made)["example"]["epsilon"] == spent > 0
    again = made.train(failing(call), order_for(agent_root, 1))
    assert again.update.any(), "a finished round is answered from memory, whatever the watch says"


@pytest.mark.parametrize("unit", [IN_STEPS, IN_UPDATE])
def test_a_failure_of_the_upload_before_it_is_kept_costs_nothing(agent, agent_root, unit, monkeypatch):
    made = agent(epsilon=20.0)
    call = call_for(agent_root, **unit, **RUN)
    with monkeypatch.context() as patch:
        patch.setattr("client.local_site.quantizer", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.train(call, order_for(agent_root))
    assert rows(made)["example"]["releases"] == 0
    made.train(call, order_for(agent_root))
    assert rows(made)["example"]["releases"] == 1


@pytest.mark.parametrize("unit", [IN_STEPS, IN_UPDATE])
def test_once_anything_may_be_stored_the_round_stays_spent(agent, agent_root, unit, monkeypatch):
    made = agent(epsilon=20.0)
    monkeypatch.setattr("client.local_site.keep_outcome", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.train(call_for(agent_root, **unit, **RUN), order_for(agent_root))
    assert rows(made)["example"]["releases"] == 1


def test_an_end_of_the_process_gives_nothing_back(agent, agent_root, monkeypatch):
    made = agent(epsilon=20.0)

    def end(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("client.local_site.Trainer.train", end)
    with pytest.raises(KeyboardInterrupt):
        made.train(call_for(agent_root, **IN_STEPS, **RUN), order_for(agent_root))
    assert rows(made)["example"]["releases"] == 1


def test_correlated_noise_is_never_given_back(agent, agent_root):
    """Its one line pays for every round of the run, also for those that were released."""
    made = agent(epsilon=20.0)
    banded = {"privacy__sampler": "cyclic", "privacy__mechanism": "banded", "privacy__bands": 2}
    call = call_for(agent_root, **IN_STEPS, **RUN, **banded)
    made.train(call, order_for(agent_root, 1))
    spent = rows(made)["example"]["epsilon"]
    with pytest.raises(SiteError, match="9 MB"):
        made.train(failing(call), order_for(agent_root, 2))
    assert rows(made)["example"]["epsilon"] == spent > 0
