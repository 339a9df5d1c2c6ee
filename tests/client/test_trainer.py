"""The trainer on the tiny base."""

import numpy as np
import pytest
import torch

from client.trainer import Trainer, learning_rate
from mllm.warm import warm_model, warm_task
from strategies.client_round import ClientRound
from strategies.fedit import FedIT
from tests.federated import options
from umbel.config import RunConfig, TrainConfig
from umbel.errors import ModelError


@pytest.fixture
def setting(tiny_root):
    def make(**changes):
        config = RunConfig.from_flat(options(tiny_root, **changes))
        warm, task = warm_model(config), warm_task(config)
        return Trainer(warm.tuned, warm.collator, config.train), warm, task.train

    return make


def client(warm):
    return ClientRound(FedIT(), warm.tuned.spec, warm.initial, 1)


def test_training_is_a_function_of_the_seed(setting):
    trainer, warm, examples = setting()
    results = []
    for seed in (0, 0, 1):
        trainer.train(examples, client(warm), seed=seed)
        results.append(warm.tuned.vector())
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_accumulated_microbatches_equal_one_batch(setting):
    vectors = []
    for microbatch in (4, 3, 1):
        trainer, warm, examples = setting(train__microbatch=microbatch)
        trainer.train(examples, client(warm), seed=0)
        vectors.append(warm.tuned.vector() - warm.initial)
    scale = np.abs(vectors[0]).max()
    for other in vectors[1:]:
        # AdamW's first steps divide by the gradient's own size, which magnifies rounding where it is tiny
        assert np.median(np.abs(other - vectors[0])) < 1e-4 * scale


def test_only_trainable_tensors_move_and_everything_is_put_back(setting):
    trainer, warm, examples = setting()

    class OnlyB(ClientRound):
        trainable = frozenset(t.name for t in warm.tuned.spec if "lora_B" in t.name)

    trainer.train(examples, OnlyB(FedIT(), warm.tuned.spec, warm.initial, 1), seed=0)
    before, after = warm.tuned.spec.views(warm.initial), warm.tuned.spec.views(warm.tuned.vector())
    for name in before:
        assert np.array_equal(before[name], after[name]) == ("lora_A" in name)
    assert all(p.requires_grad and p.grad is None for p in warm.tuned.parameters.values())
    assert not warm.tuned.model.training


def test_hooks_see_every_step(setting):
    trainer, warm, examples = setting()
    calls = []

    class Hooked(ClientRound):
        hooked = True

        def gradient(self, gradient, parameters):
            calls.append("gradient")
            for value in gradient.values():
                value[...] = 0

        def after_step(self, parameters):
            calls.append("after")

    trainer.train(examples, Hooked(FedIT(), warm.tuned.spec, warm.initial, 1), seed=0)
    assert calls == ["gradient", "after"] * 2
    np.testing.assert_array_equal(warm.tuned.vector(), warm.initial)  # a zero gradient moves nothing


def test_hooks_change_tensors_that_lie_elsewhere(setting, monkeypatch):
    """On a GPU an array is a copy of its tensor: what a hook changes must come back."""
    trainer, warm, examples = setting(train__optimizer="sgd", train__learning_rate=0.1)
    name = next(t.name for t in warm.tuned.spec if "lora_B" in t.name)

    class Hooks(ClientRound):
        hooked = True

        def gradient(self, gradient, parameters):
            gradient[name] += 0.5 * parameters[name] + 1.0

        def after_step(self, parameters):
            parameters[name][...] *= 0.5

    found = []
    for elsewhere in (False, True):
        if elsewhere:
            monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
        trainer.train(examples, Hooks(FedIT(), warm.tuned.spec, warm.initial, 1), seed=0)
        found.append(warm.tuned.vector())
    np.testing.assert_array_equal(*found)
    trainer.train(examples, client(warm), seed=0)
    assert not np.array_equal(found[0], warm.tuned.vector())


def test_a_loss_that_is_not_finite_is_refused_and_the_model_is_put_back(setting):
    trainer, warm, examples = setting(train__learning_rate=1e30)
    with pytest.raises(ModelError, match="not finite"):
        trainer.train(examples, client(warm), seed=0, amount=10)
    assert not warm.tuned.model.training


def test_nothing_trainable_is_refused(setting):
    trainer, warm, examples = setting()

    class Nothing(ClientRound):
        trainable = frozenset()

    with pytest.raises(ModelError, match="trainable"):
        trainer.train(examples, Nothing(FedIT(), warm.tuned.spec, warm.initial, 1), seed=0)


def test_the_schedule_falls_from_the_rate_to_a_twentieth():
    cosine = TrainConfig(**{"learning-rate": 1.0})
    values = [learning_rate(cosine, x) for x in np.linspace(0, 1, 11)]
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.05)
    assert values == sorted(values, reverse=True)
    assert learning_rate(TrainConfig(schedule="constant", **{"learning-rate": 1.0}), 0.9) == 1.0
