"""One approval, one run: a definition does not train under a second run id, and the same run may be resumed."""

import pytest

from client.agent.agent import Agent
from client.agent.begun import Begun
from client.agent.review import approve_run, review_run, withdraw_run
from tests.client.agent.houses import call_for, definition_for, enrol, make_house, order_for, policy_for
from umbel.errors import SiteError
from umbel.wire import secure_order

AGAIN = "was trained here as run 'x', and run 'y' would repeat it"


@pytest.fixture
def house(agent_root, tmp_path):
    def make(**changes):
        made = make_house(tmp_path / "site", policy_for(agent_root, **{"runs__repeat": False, **changes}))
        enrol([made])
        return made

    return make


def test_a_second_run_of_a_definition_is_refused_from_its_first_word(house, agent_root):
    agent = Agent(house())
    agent.describe(call_for(agent_root, "y"))  # nothing is trained by that
    agent.train(call_for(agent_root, "x"), order_for(agent_root))
    for ask in (agent.describe, agent.ledger, lambda c: agent.train(c, order_for(agent_root))):
        with pytest.raises(SiteError, match=AGAIN):
            ask(call_for(agent_root, "y"))
    assert any(AGAIN in sentence for sentence in agent.dry_run(call_for(agent_root, "y")))
    agent.train(call_for(agent_root, "z", train__amount=1), order_for(agent_root))  # another definition


def test_two_sums_with_different_cohorts_under_one_approval_cannot_be_had(house, agent_root):
    secure = {"secagg__enabled": True, "federation__clients": 5, "federation__minimum": 3}
    made = house(runs__approval="each", runs__secure_aggregation=True, runs__cohort=3)
    approve_run(made, definition_for(agent_root, **secure), "A", 1)
    agent = Agent(made)
    agent.train(call_for(agent_root, "x", **secure), order_for(agent_root, secagg=secure_order("x", 5, 1)))
    with pytest.raises(SiteError, match=AGAIN):
        agent.train(call_for(agent_root, "y", **secure), order_for(agent_root, secagg=secure_order("y", 4, 1)))


@pytest.mark.parametrize(("first", "then"), [("auto", "x"), ("x", "x")])
def test_a_run_that_is_resumed_comes_with_another_id_of_flower(house, agent_root, first, then):
    """A run without a name is resumed by naming the id that it got; one with a name by that name."""
    made = house()
    agent = Agent(made)
    before = agent.train(call_for(agent_root, "x" if first == "auto" else "17", run__id=first), order_for(agent_root))
    agent.close()
    again = Agent(made).train(call_for(agent_root, "18", run__id=then), order_for(agent_root))
    assert (before.update == again.update).all()


def test_what_was_begun_outlives_a_restart(house, agent_root):
    made = house()
    Agent(made).train(call_for(agent_root, "x"), order_for(agent_root))
    with pytest.raises(SiteError, match=AGAIN):
        Agent(made).train(call_for(agent_root, "y"), order_for(agent_root))


def test_each_approval_allows_one_more_run(house, agent_root):
    made = house(runs__approval="each")
    run = definition_for(agent_root)
    assert approve_run(made, run, "A", 1).runs == 1
    agent = Agent(made)
    agent.train(call_for(agent_root, "x"), order_for(agent_root))
    assert "trained before as x" in dict(review_run(made, run).facts)["repeats"]
    withdraw_run(made, run, "A")
    assert approve_run(made, run, "A", 1).runs == 2
    agent.train(call_for(agent_root, "y"), order_for(agent_root))
    agent.train(call_for(agent_root, "x"), order_for(agent_root))
    with pytest.raises(SiteError, match="was trained here as run 'y', and run 'z'"):
        agent.train(call_for(agent_root, "z"), order_for(agent_root))


def test_runs_that_were_approved_one_by_one_may_all_come_later(house, agent_root):
    made = house(runs__approval="each")
    assert [approve_run(made, definition_for(agent_root), "A", 1).runs for _ in "xy"] == [1, 2]
    agent = Agent(made)
    for name in "xy":
        agent.train(call_for(agent_root, name), order_for(agent_root))


def test_a_refused_order_begins_nothing(house, agent_root):
    agent = Agent(house())
    with pytest.raises(SiteError, match="leave the amount out"):
        agent.train(call_for(agent_root, "x"), order_for(agent_root, amount=1))
    agent.train(call_for(agent_root, "y"), order_for(agent_root))


def test_repeats_may_be_allowed_and_without_noise_the_reader_is_warned(house, agent_root):
    made = house(runs__repeat=True)
    agent = Agent(made)
    for name in "xy":
        agent.train(call_for(agent_root, name), order_for(agent_root))
    found = review_run(made, definition_for(agent_root))
    assert found.objections == ()
    assert "subtract the two sums" in found.warnings[0]
    assert review_run(made, definition_for(agent_root, privacy__unit="example")).warnings == ()
    assert review_run(house(), definition_for(agent_root)).warnings == ()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[" * 100_000])
def test_a_list_that_cannot_be_read_stops_the_definition(house, agent_root, content):
    made = house()
    Begun(made.state / "begun").note(definition_for(agent_root).hash, "x")
    (made.state / "begun" / f"{definition_for(agent_root).hash}.json").write_text(content)
    with pytest.raises(SiteError, match="holds no list of run ids"):
        Agent(made).train(call_for(agent_root, "x"), order_for(agent_root))
