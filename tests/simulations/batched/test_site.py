"""Many virtual devices through the real site's code: memory, budget, secure rounds, whole runs."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.local_site import LocalSite
from client.store import MemoryStore
from mllm.warm import warm_model
from simulations.batched import trainer
from simulations.batched.site import answer_train, train_sites
from simulations.memory_grid import MemoryGrid
from tests.federated import options
from umbel.config import RunConfig
from umbel.errors import BudgetExceeded, SiteError, UmbelError
from umbel.wire import SecAggStep, TrainOrder, TrainReply, secure_order


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        changes = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        base = {"run.directory": str(tmp_path / "runs"), "train.optimizer": "sgd"}
        return options(tiny_root) | base | changes

    return make


@pytest.fixture
def counted(monkeypatch):
    """How many jobs each call of the lane trainer got."""
    calls = []
    real = trainer.LaneTrainer.train_many

    def train_many(self, jobs):
        calls.append(len(jobs))
        return real(self, jobs)

    monkeypatch.setattr(trainer.LaneTrainer, "train_many", train_many)
    return calls


def sites_of(config, stores=None):
    stores = stores or [MemoryStore() for _ in range(config.federation.clients)]
    return [LocalSite(config, i, len(stores), store, run="1") for i, store in enumerate(stores)]


def order_of(config, round_number=1, **fields):
    warm = warm_model(config)
    return TrainOrder(round_number, warm.tuned.spec.hash, warm.initial, **fields)


def test_the_replies_are_those_of_every_site_alone(flat):
    config = RunConfig.from_flat(flat())
    order = order_of(config)
    expected = [site.train(order) for site in sites_of(config)]
    replies = train_sites(sites_of(config), [order] * 4, config)
    for reply, alone in zip(replies, expected, strict=True):
        assert isinstance(reply, TrainReply)
        assert reply.spec_hash == alone.spec_hash
        np.testing.assert_allclose(reply.update, alone.update, rtol=0, atol=1e-5 * np.abs(alone.update).max())
        assert reply.metrics.keys() == alone.metrics.keys()
        assert reply.metrics["seen"] == alone.metrics["seen"]
        assert reply.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


def test_an_order_asked_twice_is_trained_once(flat, counted):
    config = RunConfig.from_flat(flat())
    order, sites = order_of(config), sites_of(config)
    replies = train_sites([*sites, sites[0], sites[0]], [order] * 6, config)
    assert counted == [4]
    again = train_sites(sites, [order] * 4, config)
    assert counted == [4]
    for reply in (replies[4], replies[5], again[0]):
        np.testing.assert_array_equal(reply.update, replies[0].update)
    train_sites(sites, [order_of(config, 2)] * 4, config)
    assert counted == [4, 4]


def test_every_device_books_its_own_budget_once(flat):
    config = RunConfig.from_flat(flat(privacy__unit="example", privacy__delta=1e-2))
    order, sites = order_of(config), sites_of(config)
    replies = train_sites([*sites, sites[0]], [order] * 5, config)
    assert all(isinstance(reply, TrainReply) and "loss" not in reply.metrics for reply in replies)
    assert [site.ledger().events for site in sites] == [1] * 4
    spent = sites[0].ledger()
    np.testing.assert_array_equal(replies[0].update, replies[4].update)
    assert not np.array_equal(replies[0].update, replies[1].update)
    alone = LocalSite(config, 0, 4, MemoryStore(), run="other")
    alone.train(order)
    assert alone.ledger().epsilon == spent.epsilon > 0


def test_a_device_without_budget_is_refused_before_training_and_others_go_on(flat, counted, monkeypatch):
    config = RunConfig.from_flat(flat(privacy__unit="example", privacy__delta=1e-2))
    order, sites = order_of(config), sites_of(config)
    real = LocalSite.prepare

    def prepare(self, asked):
        if self.name == sites[1].name:
            raise BudgetExceeded("nothing is left")
        return real(self, asked)

    monkeypatch.setattr(LocalSite, "prepare", prepare)
    replies = train_sites(sites, [order] * 4, config)
    assert isinstance(replies[1], BudgetExceeded)
    assert [isinstance(reply, TrainReply) for reply in replies] == [True, False, True, True]
    assert counted == [3]


def test_a_private_client_update_is_noised_and_booked(flat):
    config = RunConfig.from_flat(
        flat(
            privacy__unit="client",
            privacy__place="update",
            privacy__sampler="full",
            privacy__relation="replace-one",
            privacy__delta=1e-2,
        )
    )
    order, sites = order_of(config), sites_of(config)
    first = train_sites(sites, [order] * 4, config)
    assert all(isinstance(reply, TrainReply) for reply in first), first
    assert [site.ledger().events for site in sites] == [1] * 4
    another = config.model_copy(update={"run": config.run.model_copy(update={"id": "another"})})
    other = train_sites(sites_of(another), [order_of(another)] * 4, another)
    assert not np.array_equal(first[0].update, other[0].update)


def test_under_secure_aggregation_only_the_first_message_leaves(flat):
    config = RunConfig.from_flat(flat(secagg__enabled=True, secagg__minimum=3))
    sites = sites_of(config)
    order = order_of(config, secagg=secure_order("1", 4, 1))
    replies = train_sites(sites, [order] * 4, config)
    assert all(isinstance(reply, SecAggStep) for reply in replies)
    assert len({reply.payload for reply in replies}) == 4
    (plain,) = train_sites(sites[:1], [order_of(config)], config)
    assert isinstance(plain, SiteError)
    assert "aggregates securely" in str(plain)


def test_a_wrong_order_is_refused_alone(flat):
    config = RunConfig.from_flat(flat())
    order = order_of(config)
    wrong = TrainOrder(1, "0" * 64, order.adapter)
    replies = train_sites(sites_of(config), [order, wrong, order, order], config)
    assert isinstance(replies[1], UmbelError)
    assert sum(isinstance(reply, TrainReply) for reply in replies) == 3
    with pytest.raises(SiteError, match="one order"):
        train_sites(sites_of(config), [order], config)


class LanesGrid(MemoryGrid):
    """Answers all waiting train messages together, and hands the replies out as they are asked for."""

    answered: dict = {}  # noqa: RUF012

    def pull_messages(self, message_ids):
        wanted = list(message_ids)
        train = [m for m in self._waiting.values() if m.metadata.message_type == "train"]
        contexts = [self.contexts[m.metadata.dst_node_id] for m in train]
        for message, reply in zip(train, answer_train(train, contexts, lanes=8), strict=True):
            self.answered[message.metadata.message_id] = reply
            del self._waiting[message.metadata.message_id]
        found = [self.answered.pop(i) for i in wanted if i in self.answered]
        return [*found, *super().pull_messages(wanted)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # A narrow clip makes fine steps: the rounding of secure aggregation is random in every run.
        {"secagg__enabled": True, "secagg__clip": 0.5, "strategy__name": "ffa-lora"},
        {"strategy__regulariser": "scaffold"},
    ],
)
def test_a_whole_run_in_lanes_gives_the_adapter_of_a_run_one_by_one(flat, changes, counted):
    from coordinator.run_folder import RunFolder
    from coordinator.server_app import run
    from tests.federated import run_in_memory

    alone = run_in_memory(flat(run__id="alone", **changes))
    config = RunConfig.from_flat(flat(run__id="lanes", **changes))
    from client.client_app import app as client_app

    grid = LanesGrid(client_app, 4, config.to_flat())
    with RunFolder.open(config, 1) as folder:
        run(grid, config, folder)
        together = folder.path
    assert counted.count(4) == 3  # one call a round
    a, b = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (alone, together))
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=0, atol=1e-5 if config.secagg.enabled else 1e-7)
