"""The hash in the policy holds for every model that a run loads."""

import shutil

import pytest

from client.agent.agent import Agent
from mllm.checkpoint_hash import checkpoint_hash
from tests.client.agent.houses import call_for, enrol, make_house, order_for, policy_for
from umbel.errors import ModelError


@pytest.mark.parametrize("place", ["named", "elsewhere"])
def test_a_teacher_is_the_one_that_the_policy_names(own_root, agent_root, place):
    shutil.copytree(agent_root / "base", own_root / "teacher")
    name, where = (str(own_root / "teacher"), {}) if place == "named" else ("wise", {"path": str(own_root / "teacher")})
    table = policy_for(own_root)
    table["model"].append({"name": name, **where, "hash": "0" * 64})
    house = make_house(own_root / "site", table)
    enrol([house])
    call = call_for(own_root, train__distill="teacher", train__teacher=name)
    for ask in (Agent(house).describe, lambda c: Agent(house).train(c, order_for(own_root))):
        with pytest.raises(ModelError, match="is not the one that its policy names by hash"):
            ask(call)
    table["model"][1]["hash"] = checkpoint_hash(own_root / "teacher")
    assert Agent(make_house(own_root / "site", table)).train(call, order_for(own_root)).update.any()
