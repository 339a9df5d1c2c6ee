"""What a policy must not let through: nobody's roles, one data set with two budgets, noise that is left out, epochs."""

import pytest

from client.agent.policy import Listen
from client.agent.review import review_run
from client.agent.rules import objections
from tests.client.agent.houses import NOISED, definition_for, make_house, policy_for
from umbel.errors import SiteError


@pytest.mark.parametrize("roles", [[], [""], ["client", ""]])
def test_a_list_of_no_roles_does_not_let_everybody_in(site, roles):
    with pytest.raises(SiteError, match=r"is not accepted \(listen.roles: no role is named"):
        site(listen={"address": "localhost:9443", "tls": "tls", "roles": roles})
    assert Listen().roles == ("client",)


@pytest.mark.parametrize("root", ["here/data", "there/../here/data", "./here/data", "link", "lines"])
def test_one_data_set_has_one_budget_by_whatever_name_it_is_reached(site, root):
    folder = site.root / "site"
    (folder / "here" / "data").mkdir(parents=True)
    (folder / "there").mkdir()
    (folder / "lines").mkdir()
    (folder / "here" / "data" / "train.jsonl").write_text("{}\n")
    (folder / "link").symlink_to(folder / "here" / "data")
    (folder / "lines" / "train.jsonl").symlink_to(folder / "here" / "data" / "train.jsonl")
    first = {"name": "a", "root": str(folder / "here" / "data")}
    site(data=[first, {"name": "b", "root": "other"}])
    with pytest.raises(SiteError, match="data 'a' and 'b' are the same examples, which would have two budgets"):
        site(data=[first, {"name": "b", "root": root}])


def test_the_built_in_data_have_one_budget_too(site):
    with pytest.raises(SiteError, match="are the same examples"):
        site(data=[{"name": name, "task": "easy-vqa"} for name in "ab"])


def test_a_root_that_is_no_path_is_refused(site):
    with pytest.raises(SiteError, match="its root is no path"):
        site(data=[{"name": "a", "root": "a\x00b"}])


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({}, "has a budget, and a run without noise cannot be booked"),
        (
            {"privacy__unit": "client", "privacy__place": "coordinator", "privacy__sampler": "full"},
            "has a budget, and noise that the coordinator adds cannot be booked",
        ),
    ],
)
def test_data_with_a_budget_are_not_given_without_noise(site, run, said):
    house = site(runs__privacy=["step", "none", "coordinator"])
    found = objections(house, definition_for(site.root, **run, task__data=str(site.root / NOISED)))
    assert [said in sentence for sentence in found] == [True]
    assert objections(house, definition_for(site.root, **run, task__data=str(site.root / "data"))) == ()


def test_epochs_are_counted_before_anybody_approves(own_root):
    house = make_house(own_root / "site", policy_for(own_root, runs__steps=12))
    epochs = {"train__unit": "epochs", "train__batch_size": 4}
    assert review_run(house, definition_for(own_root, **epochs, train__amount=1)).objections == ()
    found = review_run(house, definition_for(own_root, **epochs, train__amount=2))
    assert found.objections == (
        "A round would take 24 local steps and this site allows 12: lower train.amount, or let its owner raise "
        "runs.steps.",
    )
    many = definition_for(own_root, **epochs, train__amount=13)  # more epochs than steps need no counting
    assert any("number of local steps 13" in sentence for sentence in objections(house, many))
    assert len(review_run(house, many).objections) == 1
