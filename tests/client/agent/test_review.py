"""What a person reads of a run before they sign."""

import pytest

from client.agent.review import review_run
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
