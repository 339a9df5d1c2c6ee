"""After closing time a round that has begun is finished, and no other begins."""

from dataclasses import replace

import numpy as np
import pytest

from client.agent.agent import Agent
from client.agent.open_round import OpenRound
from client.agent.policy import Hours
from client.store import MemoryStore
from tests.client.agent.houses import call_for, definition_for, enrol, make_house, order_for, policy_for
from umbel.errors import SiteError
from umbel.wire import TrainOrder, secure_order

CLOSED = "trains only on"


@pytest.fixture
def agent(own_root):
    def make(**changes):
        house = make_house(own_root / "site", policy_for(own_root, **changes))
        enrol([house])
        return Agent(house)

    return make


def close(agent, restart=False):
    if restart:
        agent = Agent(agent.house)
    agent.house = replace(agent.house, policy=agent.house.policy.model_copy(update={"hours": Hours(days=())}))
    return agent


@pytest.mark.parametrize("restart", [False, True])
def test_the_same_order_is_answered_after_closing_time(agent, own_root, restart):
    open_agent, call = agent(), call_for(own_root)
    first = open_agent.train(call, order_for(own_root))
    closed = close(open_agent, restart)
    np.testing.assert_array_equal(closed.train(call, order_for(own_root)).update, first.update)
    other = order_for(own_root)
    for order in (order_for(own_root, 2), replace(other, adapter=other.adapter + 1)):
        with pytest.raises(SiteError, match=CLOSED):
            closed.train(call, order)
    with pytest.raises(SiteError, match=CLOSED):
        closed.train(call_for(own_root, "another"), order_for(own_root))


def test_a_secure_sum_is_tried_again_after_closing_time(agent, own_root):
    secure = {"secagg__enabled": True, "federation__clients": 3, "federation__minimum": 3}
    open_agent, call = agent(runs__cohort=3), call_for(own_root, **secure)
    open_agent.train(call, order_for(own_root, secagg=secure_order("s", 3, 1)))
    assert close(open_agent).train(call, order_for(own_root, secagg=secure_order("s", 3, 2))).round == 1


def test_nothing_is_known_of_a_round_that_was_refused(agent, own_root):
    open_agent, call = agent(), call_for(own_root)
    with pytest.raises(SiteError, match="leave the amount out"):
        open_agent.train(call, order_for(own_root, amount=1))
    with pytest.raises(SiteError, match=CLOSED):
        close(open_agent).train(call, order_for(own_root))


def test_a_later_pass_belongs_to_its_round_alone(tmp_path):
    store, config = MemoryStore(), definition_for(tmp_path).config
    first = TrainOrder(2, "s", np.zeros(3, np.float32))
    found = OpenRound(store, config)
    assert not found.covers(first)
    found.note(first)
    second = replace(first, pass_number=2, adapter=np.ones(3, np.float32))
    found.note(second)  # begins nothing
    assert found.covers(first)
    assert found.covers(second)
    assert not found.covers(replace(second, round=3))


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"[]", b"1"])
def test_what_cannot_be_read_covers_nothing(tmp_path, content):
    store = MemoryStore()
    store.put("open-round", content)
    assert not OpenRound(store, definition_for(tmp_path).config).covers(TrainOrder(1, "s", np.zeros(1, np.float32)))


def test_lines_of_the_agent_s_output_say_the_round(agent, own_root, monkeypatch):
    from client.local_site import LocalSite
    from umbel import logs

    seen = []

    def train(self, order):
        seen.append((logs._run.get(), logs._round.get()))
        return original(self, order)

    original = LocalSite.train
    monkeypatch.setattr(LocalSite, "train", train)
    agent().train(call_for(own_root, "17"), order_for(own_root, 2))
    assert seen == [("17", 2)]
    assert logs._round.get() == 0
