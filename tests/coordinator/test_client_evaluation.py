"""Evaluation at the clients: held-out data, personal models, and counts that nobody should see alone."""

import numpy as np
import pytest

from tests.federated import lines, options, run_in_memory
from umbel.errors import ConfigError, SiteError


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = options(tiny_root, federation__rounds=2, train__learning_rate=0.05, evaluate__clients=True)
        base |= {"run.directory": str(tmp_path / "runs"), "evaluate.held-out": 0.25}
        return base | {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}

    return make


def site(config, index, folder=None):
    from client.local_site import LocalSite
    from client.store import MemoryStore

    return LocalSite(config, index, config.federation.clients, MemoryStore(), run="1")


@pytest.mark.parametrize("name", ["fedsa-lora", "feddpa", "fedit"])
def test_figures_come_from_every_clients_held_out_part(flat, name):
    path = run_in_memory(flat(strategy__name=name))
    (start,), (end,) = lines(path, "start"), lines(path, "end")
    before, after = start["baseline"]["clients"], end["evaluation"]["clients"]
    assert before["count"] == after["count"] == 12  # a quarter of 48 images
    assert before["clients"] == after["clients"] == 4
    assert after["loss"] < before["loss"] - 1e-3
    assert [line["evaluation"]["clients"]["count"] for line in lines(path)] == [12, 12]
    assert sum(line["examples"] for line in lines(path)) > 0
    text = (path / "report.html").read_text()
    assert "clients" in text
    assert "held out" in (path / "adapter" / "README.md").read_text()


def test_the_clients_measure_their_own_personal_models(flat):
    """With FedSA-LoRA the global adapter alone is the base: only the clients' figures can improve."""
    path = run_in_memory(flat(strategy__name="fedsa-lora"))
    (start,), (end,) = lines(path, "start"), lines(path, "end")
    assert end["evaluation"]["eval"]["loss"] == pytest.approx(start["baseline"]["eval"]["loss"], abs=1e-6)
    assert end["evaluation"]["clients"]["loss"] < start["baseline"]["clients"]["loss"] - 1e-3


def test_the_counts_are_those_of_the_kept_model(flat, monkeypatch):
    """By hand: the received A with the kept B of one site, on the examples that it did not train on."""
    from client.held_out import hold_out
    from client.local_site import LocalSite
    from client.store import MemoryStore
    from mllm.tasks.metrics import evaluate
    from mllm.warm import warm_model, warm_task
    from umbel.config import RunConfig
    from umbel.wire import EvaluateOrder, TrainOrder

    config = RunConfig.from_flat(flat(strategy__name="fedsa-lora"))
    warm, trained_on = warm_model(config), []
    here = LocalSite(config, 1, 4, MemoryStore(), run="1")
    original = warm.collator.__class__.__call__
    monkeypatch.setattr(
        warm.collator.__class__,
        "__call__",
        lambda self, examples: trained_on.extend(e.images[0].path for e in examples) or original(self, examples),
    )
    spec = warm.tuned.spec
    here.train(TrainOrder(1, spec.hash, warm.initial))
    local = warm.tuned.vector()
    monkeypatch.undo()
    received = warm.initial + np.float32(0.01)
    found = here.evaluate(EvaluateOrder(1, spec.hash, received))

    from client.batches import derive_seed

    mine = warm_task(config).client(1, 4, config.run.seed)
    _, held = hold_out(mine, 0.25, derive_seed("held out", config.run.seed, here.name))
    assert not {e.images[0].path for e in held} & set(trained_on)
    whole = received.copy()
    for pair in spec.pairs:
        spec.views(whole)[pair.b.name][...] = spec.views(local)[pair.b.name]
    warm.tuned.load(whole)
    by_hand = evaluate(warm.tuned.model, warm.collator, held, batch_size=64)
    assert found["examples"] == by_hand.count == len(held) == 3
    assert found["correct"] == round(by_hand.accuracy * by_hand.count)
    assert found["loss"] == pytest.approx(by_hand.loss * by_hand.count)


def test_without_it_nothing_is_held_out_and_nobody_is_asked(flat):
    grids = []
    path = run_in_memory(flat(run__id="a", evaluate__clients=False), grid_hook=grids.append)
    assert "clients" not in lines(path, "end")[0]["evaluation"]
    assert "evaluate" not in {kind for _, kind in grids[0].sent}
    held = run_in_memory(
        flat(run__id="b", train__unit="epochs", train__amount=1, train__batch_size=3), grid_hook=grids.append
    )
    whole = run_in_memory(
        flat(run__id="c", train__unit="epochs", train__amount=1, train__batch_size=3, evaluate__clients=False)
    )
    assert lines(held)[0]["examples"] == 36
    assert lines(whole)[0]["examples"] == 48


def test_only_the_cohort_is_asked_after_a_round(flat):
    path = run_in_memory(flat(federation__cohort="fixed", federation__cohort_size=2))
    assert [line["evaluation"]["clients"]["clients"] for line in lines(path)] == [2, 2]
    assert lines(path, "end")[0]["evaluation"]["clients"]["clients"] == 4


@pytest.mark.parametrize(
    "lie",
    [
        {"examples": 1.0, "correct": 5.0, "loss": 0.0},
        {"examples": float("nan"), "correct": 0.0, "loss": 0.0},
        {"examples": 3.0, "correct": -1.0, "loss": 0.0},
        {"examples": 3.0, "correct": 1.0},
    ],
)
def test_impossible_counts_are_left_out(flat, lie):
    from flwr.app import Message

    from client.client_app import app
    from umbel import wire

    def client(message, context):
        if message.metadata.message_type == "evaluate" and context.node_config["partition-id"] == 0:
            return Message(wire.pack_metrics(lie), reply_to=message)
        return app(message, context)

    path = run_in_memory(flat(federation__rounds=1), client=client)
    figures = lines(path, "end")[0]["evaluation"]["clients"]
    assert (figures["clients"], figures["count"]) == (3, 9)
    assert 0 <= figures["accuracy"] <= 1


def test_a_client_with_one_image_only_takes_no_part_in_it(flat, tmp_path):
    from tests.federated import make_folder

    make_folder(tmp_path / "few", train=4)
    path = run_in_memory(flat(task__data=str(tmp_path / "few"), task__minimum=1, federation__rounds=1))
    assert "clients" not in lines(path, "end")[0]["evaluation"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secagg__enabled": True}, "counts of single clients"),
        ({"privacy__unit": "example", "privacy__delta": 1e-2}, "no noise covers"),
        ({"privacy__unit": "client", "privacy__place": "coordinator", "privacy__sampler": "full"}, "no noise covers"),
    ],
)
def test_counts_that_privacy_or_masks_should_hide_are_refused_at_both_ends(flat, changes, words):
    from coordinator.supported import check_supported
    from mllm.warm import warm_model
    from umbel.config import RunConfig
    from umbel.wire import EvaluateOrder

    config = RunConfig.from_flat(flat(**changes))
    with pytest.raises(ConfigError, match=words):
        check_supported(config)
    spec = warm_model(config).tuned.spec
    with pytest.raises(SiteError, match="nothing was evaluated"):
        site(config, 0).evaluate(EvaluateOrder(1, spec.hash, spec.zeros()))


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy__name": "fedsa-lora"},
        {"strategy__name": "feddpa"},
        {"strategy__regulariser": "scaffold", "train__optimizer": "sgd", "train__learning_rate": 0.5},
        {"strategy__compression": "sparsify", "strategy__error_feedback": True},
    ],
)
def test_a_killed_run_resumes_with_what_the_clients_kept(flat, changes):
    """What a method keeps at a site outlives the processes: the resumed run's figures are the unbroken run's."""
    options = changes | {"federation__rounds": 3}
    whole = run_in_memory(flat(run__id="whole", **options))
    count = {"n": 0}

    def fault(node, message):
        if message.metadata.message_type == "train":
            count["n"] += 1
            if count["n"] == 10:
                raise Killed

    with pytest.raises(Killed):
        run_in_memory(flat(**options), fault=fault)
    path = run_in_memory(flat(**options))
    assert lines(path, "end")[0]["evaluation"] == lines(whole, "end")[0]["evaluation"]
