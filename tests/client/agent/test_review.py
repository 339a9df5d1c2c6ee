"""What a person reads of a run before they sign."""

import pytest

from client.agent.review import review_run
from client.budget import SiteBudget, example_plan
from tests.client.agent.houses import definition_for, make_house, policy_for


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "LoRA rank 2 on language by fedit"),
        ({"lora__method": "dora"}, "DoRA rank 2 on language by fedit"),
        ({"lora__method": "ia3"}, "IA3 scales on language by fedit"),
        ({"lora__method": "adapter"}, "adapters of rank 2 on language by fedit"),
        ({"lora__method": "prompt", "lora__tokens": 5}, "5 soft tokens as a prompt by fedit"),
        ({"lora__method": "prefix", "lora__tokens": 3}, "3 soft tokens as a prefix by fedit"),
    ],
)
def test_it_says_what_is_trained(own_root, changes, said):
    house = make_house(own_root / "site", policy_for(own_root))
    facts = dict(review_run(house, definition_for(own_root, **changes)).facts)
    assert facts["trains"] == said
    assert facts["rounds"] == "at most 3, each of 2 local steps on batches of 4"


def test_a_run_that_hides_clients_shows_what_it_costs_an_example_too(own_root):
    """An example was part of every release, those that hide examples and those that hide clients."""
    house = make_house(own_root / "site", policy_for(own_root))
    client = {"privacy__unit": "client", "privacy__place": "update", "privacy__epsilon": 3.0}
    client |= {"privacy__sampler": "full", "privacy__relation": "replace-one"}
    definition = definition_for(own_root, **client)
    data = next(data.name for data in house.policy.data if data.epsilon)

    def after():
        facts = dict(review_run(house, definition).facts)
        return [float(facts[name].partition("after this run ")[2].split(":")[0]) for name in ("cost", "cost, example")]

    alone = after()
    assert alone[0] == alone[1] <= 3.0 + 1e-6
    earlier = definition_for(own_root, privacy__unit="example", privacy__epsilon=2.0).config
    budget = SiteBudget(house.ledger, dataset=data, run="earlier")
    budget.reserve(example_plan(earlier, 24), 1)
    client_level, example_level = after()
    assert client_level == alone[0]
    assert example_level > alone[1]
