"""The black-box half of ``umbel audit``: canaries through the very code that trains a client or noises a cohort."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.config import RunConfig
from umbel.errors import PrivacyError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from mllm.tasks.example import Example
    from mllm.warm import WarmModel
    from privacy.audit import ExampleCanaries, OneRunReport, TradeOff
    from privacy.plan import PrivacyPlan

_WORDS = 3
_SIDE = 64
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Audited:
    """The run under audit: steps (or rounds) of Poisson sampling at this rate, and what is claimed of it.

    Attributes:
        noise_multiplier, sampling_rate, steps: of the run.
        claim: epsilon claimed; 0 takes the run's own curve.
        delta: where epsilons are stated.
        canaries: how many; a quarter of them is guessed.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    claim: float
    delta: float
    canaries: int

    def __post_init__(self) -> None:
        from privacy.audit import check_dp_sgd

        check_dp_sgd(self.noise_multiplier, self.sampling_rate, self.steps)

    def judged(self, scores: npt.NDArray[np.float64], members: npt.NDArray[np.bool_]) -> OneRunReport:
        """Guesses from the scores and what they prove."""
        from privacy.audit import CurveTradeOff, dp_sgd_trade_off, judge

        def at(strength: float) -> TradeOff:
            return dp_sgd_trade_off(self.noise_multiplier / strength, self.sampling_rate, self.steps)

        claimed = CurveTradeOff((self.claim,), (self.delta,)) if self.claim > 0 else at(1.0)
        guesses = self.canaries // 4
        return judge(scores, members, guesses, claimed, at, delta=self.delta, bounds=(1 / 16, 16.0))

    def plan(self, config: RunConfig, population: int, **kind: Any) -> PrivacyPlan:
        """The plan of the run under audit, whose budget never ends it.

        Args:
            population: units that take part.
            kind: fields that depend on the unit (unit, place, ...).

        Raises:
            PlanError: as the plan.
        """
        from privacy.plan import PrivacyPlan
        from privacy.terms import Relation, Sampler

        return PrivacyPlan(
            relation=Relation.ADD_REMOVE,
            sampler=Sampler.FULL if self.sampling_rate == 1 else Sampler.POISSON,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            clipping_norm=config.privacy.clipping_norm,
            noise_multiplier=self.noise_multiplier,
            delta=min(self.delta, 1 / population),
            epsilon_budget=1e6,
            population=population,
            **kind,
        )


def examples_through_training(config: RunConfig, model: str, examples: int, run: Audited) -> OneRunReport:
    """Canary images with random words for answers, trained on by ``client.trainer.Trainer`` under a PrivacyPlan.

    Nothing stands in for anything: the plan draws the batches and the noise, the engine is the configured one, the
    strategy is the configured one, and the adversary sees the trained adapter alone.

    Raises:
        DataError: the task has fewer real examples than asked for.
        PrivacyError, PlanError, ModelError: as training does.
    """
    import torch

    from mllm.tasks.base import MemorySet
    from mllm.warm import warm_model, warm_task
    from privacy.audit import ExampleCanaries, train_and_score
    from umbel.cli.audit_subject import enough_examples

    torch.set_num_threads(config.train.threads)
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": model})})
    warm, pool = warm_model(config), enough_examples(warm_task(config).train, examples)
    canaries = ExampleCanaries.draw(run.canaries, _SIDE, _WORDS, _plain_tokens(warm))
    with tempfile.TemporaryDirectory(prefix="umbel-audit-") as folder:
        drawn = _as_examples(canaries, warm, Path(folder))

        def losses(_: ExampleCanaries) -> Tensor:
            return _losses(warm, drawn)

        def train(members: npt.NDArray[np.int64]) -> None:
            pooled = MemorySet([*(pool[i] for i in range(examples)), *(drawn[int(i)] for i in members)])
            _train(config, warm, pooled, run)

        warm.tuned.load(warm.initial)
        scores = train_and_score(canaries, losses, train)
    return run.judged(scores, canaries.members)


def clients_through_the_coordinator(config: RunConfig, run: Audited, size: int = 1 << 16) -> OneRunReport:
    """Canary clients, whose updates pass ``coordinator.central_dp.CentralMechanism`` in every round.

    Each would send a loud update along one entry of the vector; each round's cohort is a Poisson sample.

    Args:
        size: length of the adapter vector.

    Raises:
        PrivacyError: more canaries than entries, or adaptive clipping, whose noise has no fixed trade-off curve.
        PlanError: as the plan.
    """
    import numpy as np

    from coordinator.accumulator import ExactAccumulator
    from coordinator.central_dp import CentralMechanism
    from privacy.audit import ClientCanaries
    from privacy.sampling import sampler_for
    from privacy.terms import Clipping, Place, Unit
    from umbel.adapter import AdapterSpec, LoraShape

    if config.privacy.clipping == "adaptive":
        raise PrivacyError("Adaptive clipping moves its noise from round to round: audit with privacy.clipping=flat.")
    clipping = Clipping(config.privacy.clipping)
    plan = run.plan(config, run.canaries, unit=Unit.CLIENT, place=Place.COORDINATOR, clipping=clipping)
    spec = AdapterSpec.from_shapes({"canaries": (size,)}, LoraShape(rank=1, alpha=1.0))
    canaries = ClientCanaries.draw(run.canaries, size, loudness=100 * plan.clipping_norm)
    mechanism = CentralMechanism(plan, config, spec)
    sampler, released = sampler_for(plan), np.zeros(size, dtype=np.float32)
    for cohort in sampler.batches(run.steps):
        accumulator = ExactAccumulator(size)
        for client in cohort:
            if canaries.members[client]:
                accumulator.add(mechanism.clip(canaries.update(int(client))), 1.0)
        released += mechanism.release(accumulator)
    return run.judged(canaries.scores(released), canaries.members)


def _train(config: RunConfig, warm: WarmModel, pooled: Any, run: Audited) -> None:
    """One round of ``run.steps`` private steps from the initial adapter, in place."""
    from client.budget import private_steps
    from client.store import MemoryStore
    from client.trainer import Trainer
    from privacy.terms import Place, Unit
    from strategies.client_round import ClientRound
    from strategies.planner import plan as planned

    plan = run.plan(config, len(pooled), unit=Unit.EXAMPLE, place=Place.STEP, steps_per_round=run.steps)
    client = ClientRound(planned(config), warm.tuned.spec, warm.initial, 1)
    values = sum(p.numel() for name, p in warm.tuned.parameters.items() if name in client.trainable)
    steps, _ = private_steps(plan, config, owner="audit", values=values, round_number=1, store=MemoryStore())
    trainer = Trainer(warm.tuned, warm.collator, config.train)
    trainer.train(pooled, client, seed=config.run.seed, amount=run.steps, private=steps)


def _plain_tokens(warm: WarmModel) -> npt.NDArray[np.int64]:
    """Ids of the vocabulary that are no special tokens."""
    import numpy as np

    tokenizer: Any = warm.base.processor.tokenizer
    return np.setdiff1d(np.arange(len(tokenizer)), np.asarray(tokenizer.all_special_ids))


def _as_examples(canaries: ExampleCanaries, warm: WarmModel, folder: Path) -> list[Example]:
    """Canaries as the task's own kind of example: an image file, a question, an answer of random tokens."""
    import numpy as np
    from PIL import Image

    from mllm.tasks.example import Example, ImageSource

    made = []
    for number, (pixels, target) in enumerate(zip(canaries.images, canaries.targets, strict=True)):
        file = folder / f"{number}.png"
        shades = (pixels.numpy().transpose(1, 2, 0) * 64 + 128).clip(0, 255).astype(np.uint8)
        Image.fromarray(shades).save(file)
        answer = warm.base.processor.tokenizer.decode(target.tolist())
        image = ImageSource(file, origin=f"canary {number}", keep=True)
        made.append(Example(images=(image,), question="what is this?", answer=answer or "?", meta={}))
    return made


def _losses(warm: WarmModel, examples: list[Example]) -> Tensor:
    """Losses [m] under the model as it is."""
    import torch

    from client.losses import example_losses

    warm.tuned.model.eval()
    chunks = [examples[i : i + _CHUNK] for i in range(0, len(examples), _CHUNK)]
    with torch.no_grad():
        return torch.cat([example_losses(warm.tuned.model, warm.collator(chunk)) for chunk in chunks])
