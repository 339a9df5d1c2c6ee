"""One contract over the site in this process and the site behind an agent, by socket and by mutual TLS."""

import numpy as np
import pytest

from client.agent.remote_site import RemoteSite
from client.agent.site_premises import SitePremises
from client.local_site import LocalSite
from client.store import MemoryStore
from mllm.warm import warm_model
from tests.client.agent.houses import COORDINATOR, NOISED, flat_options, make_house, policy_for
from umbel.config import RunConfig
from umbel.errors import AdapterError, BudgetExceeded, ProtocolViolation, SiteError
from umbel.wire import EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply, secure_order

DP = {
    "privacy__unit": "example",
    "privacy__place": "step",
    "privacy__epsilon": 8.0,
    "train__batch_size": 4,
    "federation__rounds": 3,
}
SECURE = {"secagg__enabled": True, "federation__clients": 3, "federation__minimum": 3}


def options_for(root, **changes):
    return flat_options(root, **{"run__id": "auto", **changes})


@pytest.fixture(scope="module")
def courier_tls(authority, tmp_path_factory):
    return authority.issue(tmp_path_factory.mktemp("c"), "courier-a", "client")


@pytest.fixture(params=["local", "socket", "tls"])
def open_site(request, agent_root, tmp_path):
    """Opens a site for options and a run's id, in one of three ways; all three are the same site inside."""
    opened = []

    def make(run, **changes):
        flat = options_for(agent_root, **changes)
        if request.param == "local":
            config = RunConfig.from_flat(flat)
            house = make_house(tmp_path / "house", policy_for(agent_root))
            from tests.client.agent.houses import enrol

            enrol([house])
            premises = SitePremises(house, config, COORDINATOR, run)
            return LocalSite(config, 0, config.federation.clients, MemoryStore(), run=run, premises=premises)
        _, house = request.getfixturevalue("served")
        if request.param == "socket":
            site = RemoteSite(f"unix:{house.folder / 'a.sock'}", run=run, options=flat)
        else:
            folder = request.getfixturevalue("courier_tls")
            site = RemoteSite(house.policy.listen.address, run=run, options=flat, tls=folder)
        opened.append(site)
        return site

    make.kind = request.param
    yield make
    for site in opened:
        site.close()


def order_for(root, round_number=1, **facts):
    warm = warm_model(RunConfig.from_flat(options_for(root)))
    return TrainOrder(round_number, warm.tuned.spec.hash, warm.initial, **facts)


def test_it_describes_the_adapter_that_it_would_train(open_site, agent_root):
    warm = warm_model(RunConfig.from_flat(options_for(agent_root)))
    found = open_site("describe").describe()
    assert (found.site, found.rank) == ("hospital-a", 2)
    assert (found.spec_hash, found.base_hash) == (warm.tuned.spec.hash, warm.base.hash)


def test_it_trains_and_an_order_again_gives_the_same_reply(open_site, agent_root):
    site, order = open_site(f"train-{open_site.kind}"), order_for(agent_root)
    first, again = site.train(order), site.train(order)
    assert isinstance(first, TrainReply)
    assert first.update.shape == order.adapter.shape
    assert first.update.dtype == np.float32
    assert np.abs(first.update).max() > 0
    assert first.metrics["examples"] == 48
    np.testing.assert_array_equal(first.update, again.update)
    assert first.metrics == again.metrics


def test_three_ways_to_one_site_give_one_update(open_site, agent_root, request):
    update = open_site(f"same-{open_site.kind}").train(order_for(agent_root)).update
    known = request.config.cache.get("umbel/same-update", None)
    if open_site.kind == "local":
        request.config.cache.set("umbel/same-update", update.tolist())
    else:
        np.testing.assert_array_equal(update, np.array(known, dtype=np.float32))


def test_a_private_round_is_paid_once(open_site, agent_root):
    site, order = open_site(f"paid-{open_site.kind}", **DP), order_for(agent_root)
    before = site.ledger().events
    first = site.train(order)
    paid = site.ledger()
    assert paid.events == before + 1
    assert 0 < paid.epsilon < 20
    assert "loss" not in first.metrics
    np.testing.assert_array_equal(site.train(order).update, first.update)
    assert site.ledger() == paid


def test_an_order_may_not_change_what_is_paid_for(open_site, agent_root):
    site = open_site(f"amount-{open_site.kind}", **DP)
    before = site.ledger()
    with pytest.raises(SiteError, match=r"wants 3 steps"):
        site.train(order_for(agent_root, amount=3))
    assert site.ledger() == before


@pytest.mark.parametrize(
    ("facts", "error", "said"),
    [
        ({"spec_hash": "0" * 64}, SiteError, "adapter spec"),
        ({"adapter": np.zeros(3, np.float32)}, AdapterError, "3"),
        ({"pooled": True}, SiteError, "its own only"),
        ({"pass_number": 2}, SiteError, "Pass 2"),
    ],
)
def test_wrong_orders_are_refused_with_the_same_sentence(open_site, agent_root, facts, error, said):
    from dataclasses import replace

    with pytest.raises(error, match=said):
        open_site("wrong").train(replace(order_for(agent_root), **facts))


def test_secure_aggregation_begins_and_refuses_what_is_out_of_order(open_site, agent_root):
    site = open_site(f"secure-{open_site.kind}", **SECURE)
    with pytest.raises(ProtocolViolation, match="in no secure round"):
        site.secagg(MessageType.SECAGG_SHARE, SecAggStep(1, b"x"))
    order = order_for(agent_root, secagg=secure_order("secure", 3, 1))
    first = site.train(order)
    assert isinstance(first, SecAggStep)
    assert first.round == 1
    assert len(first.payload) > 64
    with pytest.raises(ProtocolViolation, match="stale"):
        site.secagg(MessageType.SECAGG_SHARE, SecAggStep(2, b"x"))
    with pytest.raises(ProtocolViolation) as caught:
        site.secagg(MessageType.SECAGG_SHARE, SecAggStep(1, b"no key list"))
    assert caught.value.reason != ""
    with pytest.raises(SiteError, match="plain update"):
        site.train(order_for(agent_root, round_number=2))


def test_counts_of_its_own_examples_stay(open_site, agent_root):
    order = order_for(agent_root)
    with pytest.raises(SiteError, match="evaluate"):
        open_site("evaluate").evaluate(EvaluateOrder(1, order.spec_hash, order.adapter))


def test_nothing_is_released_over_the_budget(open_site, agent_root):
    dear = {**DP, "privacy__noise": "fixed", "privacy__noise_multiplier": 0.25, "privacy__epsilon": 1e6}
    site = open_site(f"dear-{open_site.kind}", **dear)
    order = order_for(agent_root)
    if open_site.kind == "local":
        from privacy.ledger import Budget, Ledger
        from privacy.terms import Unit

        with Ledger.open(site._premises.ledger) as ledger:
            ledger.set_budget(Budget(20.0, 1e-5), dataset=str(agent_root / NOISED), unit=Unit.EXAMPLE)
    before = site.ledger().events
    with pytest.raises(BudgetExceeded, match="nothing was released"):
        site.train(order)
    assert site.ledger().events == before
