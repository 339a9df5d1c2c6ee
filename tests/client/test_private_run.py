"""Example-level DP through whole runs: the plan is paid for, and repeated only when it must be."""

import json

import numpy as np
import pytest

from client.budget import SiteBudget, example_plan
from privacy.ledger import Ledger
from tests.federated import options, run_in_memory
from umbel.config import RunConfig
from umbel.errors import FederationError


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = {"run.directory": str(tmp_path / "runs"), "privacy.unit": "example", "privacy.delta": 1e-2}
        changes = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        return options(tiny_root) | base | changes

    return make


def ledgers(path):
    return sorted(path.glob("sites/*/ledger.sqlite"))


def test_every_site_books_exactly_the_planned_rounds(flat):
    path = run_in_memory(flat())
    config = RunConfig.from_flat(flat())
    assert len(ledgers(path)) == 4
    for file in ledgers(path):
        with Ledger.open(file, create=False) as ledger:
            (book,) = ledger.datasets()
            spent = ledger.spent(1e-2, dataset=book[0], unit=book[1])
            assert len(ledger.events(dataset=book[0], unit=book[1])) == 3
    plan = example_plan(config, 12)
    assert plan.steps == 6
    assert spent == pytest.approx(plan.epsilon(), rel=1e-6)
    assert 0 < spent <= 8.0


def test_no_loss_and_no_draw_leaves_a_private_client(flat):
    path = run_in_memory(flat())
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "round":
            assert line["train_loss"] is None
            assert line["examples"] == 4 * 2 * 4  # clients x steps x expected batch: public numbers


def test_private_runs_differ_for_equal_seeds(flat):
    from safetensors.numpy import load_file

    paths = [run_in_memory(flat(run__id=name)) for name in "ab"]
    a, b = (load_file(p / "adapter" / "adapter_model.safetensors") for p in paths)
    assert any(not np.array_equal(a[k], b[k]) for k in a)


def test_a_repeated_round_sends_the_same_update_and_costs_nothing(flat):
    from client.local_site import LocalSite
    from client.store import MemoryStore
    from mllm.warm import warm_model
    from umbel.wire import TrainOrder

    config = RunConfig.from_flat(flat())
    warm = warm_model(config)
    order = TrainOrder(1, warm.tuned.spec.hash, warm.initial)
    first = LocalSite(config, 0, 4, MemoryStore(), run="1").train(order)
    spent = LocalSite(config, 0, 4, MemoryStore(), run="1").ledger()
    again = LocalSite(config, 0, 4, MemoryStore(), run="1").train(order)
    np.testing.assert_array_equal(first.update, again.update)
    assert LocalSite(config, 0, 4, MemoryStore(), run="1").ledger() == spent
    other = LocalSite(config, 0, 4, MemoryStore(), run="1").train(TrainOrder(2, order.spec_hash, order.adapter))
    assert not np.array_equal(first.update, other.update)
    assert LocalSite(config, 0, 4, MemoryStore(), run="1").ledger().epsilon > spent.epsilon


def test_an_exhausted_budget_is_refused_before_training(flat, monkeypatch):
    config = RunConfig.from_flat(flat())
    plan = example_plan(config, 12)
    original = SiteBudget.reserve

    def greedy(self, asked, round_number):
        for extra in range(3):
            original(self, plan, 100 + extra)
        original(self, asked, round_number)

    monkeypatch.setattr(SiteBudget, "reserve", greedy)
    with pytest.raises(FederationError, match=r"0 of 4 clients.*budget"):
        run_in_memory(flat())


@pytest.mark.parametrize("engine", ["bookkeeping", "loop"])
def test_without_noise_and_clipping_private_training_is_plain_training(tiny_root, engine):
    """Equal to the vanilla step if and only if nothing is clipped and no noise is added."""
    import torch

    from client.private import PrivateSteps
    from client.trainer import Trainer
    from mllm.warm import warm_model, warm_task
    from privacy.sampling import IndexSampler
    from strategies.client_round import ClientRound
    from strategies.fedit import FedIT

    flat = options(tiny_root, train__max_grad_norm=0.0) | {"train.optimizer": "sgd", "train.learning-rate": 0.1}
    config = RunConfig.from_flat(flat)
    warm, examples = warm_model(config), warm_task(config).train.subset(range(4))
    plan = example_plan(RunConfig.from_flat(flat | {"privacy.unit": "example", "privacy.delta": 1e-2}), 12)

    class Everything(IndexSampler):
        n, expected = 4, 4.0

        def draw(self):
            return np.arange(4)

    def run(clipping_norm, noise):
        import dataclasses

        chosen = dataclasses.replace(plan, clipping_norm=clipping_norm)
        private = PrivateSteps(chosen, engine=engine, sampler=Everything(), add_noise=noise, microbatch=3)
        client = ClientRound(FedIT(), warm.tuned.spec, warm.initial, 1)
        Trainer(warm.tuned, warm.collator, config.train).train(examples, client, seed=0, private=private)
        return warm.tuned.vector()

    client = ClientRound(FedIT(), warm.tuned.spec, warm.initial, 1)
    Trainer(warm.tuned, warm.collator, config.train).train(examples, client, seed=0)
    plain = warm.tuned.vector()
    scale = np.abs(plain - warm.initial).max()
    silent = run(1e6, lambda vector: None)
    assert np.abs(silent - plain).max() < 1e-5 * scale + 1e-7
    assert np.abs(run(1e-3, lambda vector: None) - plain).max() > 0.1 * scale

    def shift(vector):
        vector += 1.0

    assert np.abs(run(1e6, shift) - plain).max() > 1e-3
    torch.manual_seed(0)
