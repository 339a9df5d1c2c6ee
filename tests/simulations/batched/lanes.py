"""What the tests of lanes share: tiny models, jobs, and the sequential trainer beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from client.private import PrivateSteps
from client.trainer import Trainer
from mllm.load import Base
from mllm.lora import TunedModel, attach_lora
from mllm.tasks.base import MemorySet
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from privacy.noise.gaussian import add_gaussian_
from privacy.noise.source import FixedNoise
from privacy.plan import PrivacyPlan
from privacy.sampling import sampler_for
from privacy.terms import Place, Relation, Sampler, Unit
from simulations.batched import LaneJob, LaneResult, LaneTrainer
from umbel.config import TrainConfig
from umbel.config.model import LoraConfig

QUESTIONS = ("what colour is the shape ?", "is the shape red ?", "what is there in the image ?", "is there a circle ?")
ANSWERS = ("red", "blue", "yes no", "no")


@dataclass
class Setting:
    tuned: TunedModel
    collator: Collator
    examples: MemorySet
    initial: Any

    def double(self) -> Setting:
        """The same in float64, base and factors."""
        self.tuned.model.double()
        return self


def setting(tiny, folder, count=24, *, text_only=(), **lora) -> Setting:
    """Tiny base with factors (B not zero, so that A learns from the first step) and a set of examples."""
    base = Base("tiny", folder, "0" * 64, tiny.model.requires_grad_(False), tiny.processor, None)
    options = {"rank": 4, "alpha": 8.0, "targets": "language"} | lora
    tuned = attach_lora(base, LoraConfig(**options), seed=0)
    rng = np.random.default_rng(7)
    examples = []
    for number in range(count):
        path = folder / f"{number}.png"
        if not path.exists():
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        images = () if number in text_only else (ImageSource(path, keep=True),)
        examples.append(Example(images, QUESTIONS[number % 4], ANSWERS[number % 3]))
    initial = tuned.vector() + rng.normal(0, 0.05, tuned.spec.size).astype(np.float32)
    return Setting(tuned, Collator(tiny.processor), MemorySet(examples), initial)


def train_config(**changes) -> TrainConfig:
    flat = {"amount": 3, "batch-size": 4, "microbatch": 4, "learning-rate": 1e-2, "optimizer": "sgd"}
    return TrainConfig(**(flat | {key.replace("_", "-"): value for key, value in changes.items()}))


def private(examples: int, steps: int, seed: int, *, norm=0.05, noise=0.5, engine="bookkeeping", **changes):
    """DP-SGD steps whose sample and noise are fixed by the seed: for tests only."""
    values = {"unit": Unit.EXAMPLE, "relation": Relation.ADD_REMOVE, "sampler": Sampler.POISSON, "sampling_rate": 0.4}
    plan = PrivacyPlan(
        **(values | changes), steps=steps, clipping_norm=norm, noise_multiplier=noise, place=Place.STEP, delta=1e-3,
        epsilon_budget=1e9, population=examples, steps_per_round=steps,
    )  # fmt: skip
    source = FixedNoise(seed, for_tests=True)
    return PrivateSteps(
        plan,
        engine=engine,
        sampler=sampler_for(plan, source=source),
        add_noise=lambda vector: add_gaussian_(vector, plan.noise_std(), source),
        microbatch=3,
    )


def one_by_one(case: Setting, config: TrainConfig, jobs: list[LaneJob]):
    """Results and adapters of the sequential trainer."""
    found = []
    for job in jobs:
        result = Trainer(case.tuned, case.collator, config).train(
            job.examples, job.client, seed=job.seed, amount=job.amount, private=job.private, span=job.span
        )
        found.append((result, case.tuned.vector()))
    return found


def relative(got, expected, start) -> float:
    """|got - expected| over |expected - start|: the error beside the update, which is the harder measure."""
    wide = np.asarray(expected, dtype=np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - wide) / np.linalg.norm(wide - np.asarray(start)))


def check_equal(case, config, make_jobs, *, lanes=64, rows=0, tolerance=1e-5, alone=False):
    """Lanes give what the sequential trainer gives, job by job; returns the largest relative error."""
    expected = one_by_one(case, config, make_jobs())
    trainer = LaneTrainer(case.tuned, case.collator, config, lanes=lanes, rows=rows)
    jobs = make_jobs()
    worst = 0.0
    for outcome, (result, vector), job in zip(trainer.train_many(jobs), expected, jobs, strict=True):
        assert isinstance(outcome, LaneResult), outcome
        assert bool(outcome.reason) == alone, outcome.reason
        assert outcome.result.steps == result.steps
        assert outcome.result.seen == result.seen
        assert (outcome.result.loss is None) == (result.loss is None)
        if result.loss is not None:
            assert abs(outcome.result.loss - result.loss) < 1e-5 * abs(result.loss)
        error = relative(outcome.local, vector, job.client.start)
        if config.optimizer == "adamw":
            # It divides by the gradient's own size, so where a gradient is rounding alone the move is too: in float32
            # the sequential trainer itself is as far from its float64 self. In float64 the two agree to 1e-10.
            error = 0.1 * relative(outcome.local, vector, np.zeros_like(vector))
        worst = max(worst, error)
        assert error <= tolerance, error
    assert all(p.grad is None and p.requires_grad for p in case.tuned.parameters.values())
    assert not case.tuned.model.training
    assert all("forward" not in vars(m) for m in case.tuned.model.modules())
    return worst


def one_thread():
    torch.set_num_threads(1)
