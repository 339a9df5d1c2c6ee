"""LocalSite: the site in this process, for simulation and for the site agent."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from client.batches import derive_seed
from client.budget import SiteBudget, example_plan, noised_update, private_steps, update_plan
from client.held_out import hold_out
from client.interrupt import paid_for
from client.outcome import (
    RoundOutcome,
    Trained,
    keep_outcome,
    keep_trained,
    order_key,
    recall_outcome,
    recall_trained,
)
from client.premises import Premises, SimulatedPremises
from client.private import PrivateSteps
from client.resources import client_rank
from client.round_job import RoundJob
from client.sealed import SealedStore
from client.secure import SecureRound
from client.site import LedgerSummary, Site
from client.store import FileStore, NodeStore
from client.trainer import Trainer, TrainResult, learning_rate
from mllm.lora import TunedModel
from mllm.processing import check_rows
from mllm.tasks.base import ExampleSet
from mllm.warm import warm_model
from privacy.plan import PrivacyPlan
from privacy.secagg import FileGuard
from privacy.terms import Mechanism, Unit
from strategies.base import AdapterStrategy, StrategyState
from strategies.planner import plan as plan_strategy
from strategies.planner import quantizer
from umbel import __version__
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.errors import SiteError
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

_KEPT = "kept"
_LAST = "last-round"


class LocalSite(Site):
    """One partition of the task's data, trained by a model that this process keeps warm.

    Args:
        config: of the run.
        index: which partition, from 0.
        count: how many partitions there are; must equal ``federation.clients``.
        store: what this device remembers from message to message.
        run: identifies the run, for the ledger.
        rank: LoRA rank that this node's operator set, or None.
        premises: what the site has of its own; None plays it on this machine.
    """

    def __init__(
        self,
        config: RunConfig,
        index: int,
        count: int,
        store: NodeStore,
        *,
        run: str,
        rank: int | None = None,
        premises: Premises | None = None,
    ) -> None:
        if count != config.federation.clients:
            raise SiteError(
                f"This federation has {count} nodes but federation.clients is {config.federation.clients}: "
                "start as many nodes as clients (umbel run does), or set federation.clients."
            )
        self._config = config
        self._premises = premises or SimulatedPremises(config, index, run if config.run.id == "auto" else config.run.id)
        self._view, self._run = self._premises.view, self._premises.run
        self._strategy: AdapterStrategy = plan_strategy(config)
        self._rank = client_rank(config, index, rank)
        # What budget was paid for, over whom a round was unmasked, and what a strategy keeps here from round to round
        # must survive a restart; everything else may live with the run's messages.
        remembers = config.strategy.regulariser == "scaffold" or config.strategy.error_feedback
        lasting = config.privacy.unit != "none" or config.secagg.enabled or self._strategy.facts.personal or remembers
        kept: NodeStore = FileStore(self._premises.folder) if lasting or self._premises.lasting else store
        self._store = SealedStore(kept, self._premises.secret("site store"), f"{self._run}/{self.name}")

    @property
    def name(self) -> str:
        """The site's name: in simulation its partition."""
        return self._premises.name

    @property
    def _budget(self) -> SiteBudget:
        return SiteBudget(self._premises.ledger, dataset=self._premises.dataset(), run=self._run)

    def unless_released(self, line: int) -> AbstractContextManager[None]:
        """Gives back what ``line`` of the ledger booked (0: nothing) if the work inside fails."""
        return self._budget.unless_released(line) if line else nullcontext()

    def _received(self, spec_hash: str, adapter: Vector, round_number: int) -> tuple[TunedModel, Vector]:
        """This site's model at its own rank, and the adapter that it was sent at that rank.

        Under secure aggregation everybody is sent the server's adapter, and a client of lower rank cuts it itself.
        """
        top = warm_model(self._view).tuned
        own = top.at_rank(self._rank)
        if own.spec.hash == spec_hash:
            own.spec.check(adapter)
            return own, adapter
        if top.spec.hash != spec_hash:
            raise SiteError(
                f"The coordinator's adapter spec {spec_hash[:12]} is not this site's {own.spec.hash[:12]}: "
                "both ends must load the same base and LoRA configuration."
            )
        top.spec.check(adapter)
        return own, self._strategy.download(StrategyState({"adapter": adapter}), own.spec, round_number)

    def _split(self) -> tuple[ExampleSet, ExampleSet]:
        """The examples to train on, and those held out for evaluation: none unless clients evaluate."""
        config = self._config
        mine = self._premises.examples()
        if not config.evaluate.clients:
            return mine, mine.subset(())
        return hold_out(mine, config.evaluate.held_out, derive_seed("held out", config.run.seed, self.name))

    def describe(self) -> Description:
        """See Site."""
        warm = warm_model(self._view)
        warm.collator.require_teacher()
        return Description(
            site=self.name,
            spec_hash=warm.tuned.at_rank(self._rank).spec.hash,
            base_hash=warm.base.hash,
            rank=self._rank,
            version=__version__,
        )

    def train(self, order: TrainOrder) -> TrainReply | SecAggStep:
        """See Site. The same order again gives the same reply, without training or paying again."""
        found = self.prepare(order)
        if isinstance(found, RoundJob):
            paid = paid_for() if found.private is not None else nullcontext()
            with self.unless_released(found.line), paid:
                result = Trainer(found.tuned, found.collator, self._view.train).train(
                    found.examples,
                    found.client,
                    seed=found.seed,
                    amount=order.amount,
                    private=found.private,
                    span=found.span,
                    side=found.side,
                )
            found = self.conclude(found, result, found.tuned.vector(), found.elapsed)
        return self.reply(order, found)

    def prepare(self, order: TrainOrder) -> RoundOutcome | RoundJob:
        """What is to be trained for an order, paid for; or the outcome, where nothing is left to train.

        Raises:
            SiteError: the order is for another adapter.
            BudgetExceeded: the round would cost more than what is left; nothing may be trained.
        """
        if order.pooled:
            return self._pooled(order)
        key = order_key(order, self._config)
        if order.pass_number > 1:
            return recall_outcome(self._store, key, order.pass_number) or self._later_pass(order, key)
        tuned, adapter = self._received(order.spec_hash, order.adapter, order.round)
        return recall_outcome(self._store, key) or self._job(tuned, adapter, order, key)

    def reply(self, order: TrainOrder, outcome: RoundOutcome) -> TrainReply | SecAggStep:
        """What leaves: the update, or under secure aggregation the first protocol message.

        Raises:
            SiteError: a plain update was asked for in a run that aggregates securely.
        """
        if order.secagg is not None and not order.pooled:
            size = outcome.update.size
            return self._secure().begin(order.secagg, order.round, order.bound, size, order.pass_number)
        if self._config.secagg.enabled and not order.pooled:
            raise SiteError("A plain update was asked for, but this run aggregates securely: nothing was sent.")
        return TrainReply(outcome.spec_hash, outcome.update, outcome.metrics)

    def _secure(self) -> SecureRound:
        return SecureRound(
            self._config,
            self._premises.identity(),
            self._premises.roster(),
            self._store,
            self._premises.secret("secure round"),
            FileGuard(self._premises.folder / "once"),
        )

    def _job(self, tuned: TunedModel, adapter: Vector, order: TrainOrder, key: str) -> RoundJob:
        """This site's own examples and the strategy's client half, after paying for them."""
        started, spec, (examples, _) = time.perf_counter(), tuned.spec, self._split()
        collator = warm_model(self._view).collator
        collator.require_teacher()  # this and the next before anything is paid for
        check_rows(tuned.model, collator, examples)
        client = self._strategy.begin(spec, adapter, order.round, order.extras, self._kept())
        seed = derive_seed("train", self._config.run.seed, self.name, order.round)
        rounds = self._config.federation.rounds
        span = ((order.round - 1) / rounds, order.round / rounds)
        side = self._strategy.side(order.extras)
        private: PrivateSteps | None = None
        settle, line = None, 0
        plan = example_plan(self._config, len(examples))
        if plan is not None:
            self._check_planned(plan, order)
            values = sum(spec.by_name[name].size for name in client.trainable)
            owner = f"{self._run}/{self.name}"
            private, settle = private_steps(
                plan, self._config, owner=owner, values=values, round_number=order.round, store=self._store
            )
            line = self._budget.reserve(plan, order.round)  # last: what fails before it costs nothing
        return RoundJob(
            key,
            order,
            client,
            examples,
            tuned,
            collator,
            seed,
            span,
            started,
            side,
            private=private,
            settle=settle,
            line=line,
        )

    def _check_planned(self, plan: PrivacyPlan, order: TrainOrder) -> None:
        """What is booked is what the plan says of a round: nothing in an order may change that.

        Correlated noise is booked once for the whole run, in which each round comes once and in its turn.
        """
        if order.amount > 0:
            raise SiteError(
                f"An order wants {order.amount} steps instead of train.amount, but the privacy plan pays for "
                f"{plan.steps_per_round}: leave the amount out."
            )
        if plan.mechanism is Mechanism.BANDED:
            last = int((self._store.get(_LAST) or b"0").decode())
            if order.round <= last:
                raise SiteError(
                    f"Round {order.round} was asked for after round {last}, but correlated noise covers each round "
                    "once and in its turn: go on with the next round."
                )
            self._store.put(_LAST, str(order.round).encode())

    def conclude(self, job: RoundJob, result: TrainResult, local: Vector, seconds: float) -> RoundOutcome:
        """What comes of a job that was trained: the upload, clipped and noised where it must be, and kept.

        Args:
            job: of this site's :meth:`prepare`, once.
            result: of the training.
            local: the adapter after it.
            seconds: that the training took.
        """
        if job.settle is not None:
            job.settle()
        whole = update_plan(self._config)
        line = job.line if whole is None else self._budget.reserve(whole, job.order.round)
        with self.unless_released(line):
            outcome = self._upload(job, result, local, seconds, whole)
        self._keep(job.client.keep(local))
        if self._strategy.passes > 1:
            keep_trained(self._store, Trained(job.order.round, local, job.client.start, outcome.metrics))
        keep_outcome(self._store, outcome)
        return outcome

    def _upload(
        self, job: RoundJob, result: TrainResult, local: Vector, seconds: float, whole: PrivacyPlan | None
    ) -> RoundOutcome:
        """The upload of a job that was trained. Stores and sends nothing, so that a failure costs nothing."""
        order, client, spec = job.order, job.client, job.client.spec
        update = client.finish(
            local, steps=result.steps, learning_rate=learning_rate(self._config.train, sum(job.span) / 2)
        )
        if whole is not None:
            update = noised_update(whole, self._config, update, self._strategy.upload_spec(spec, order.round))
        sent: Vector | npt.NDArray[np.uint8] = update
        quantize = quantizer(self._config)
        if quantize is not None:
            rounding = derive_seed("quantize", self._config.run.seed, self.name, order.round)
            data = quantize.encode(update, rounding)
            client.encoded(update, quantize.decode(data))
            sent = np.frombuffer(data, dtype=np.uint8)
        metrics = {
            "examples": float(len(job.examples)),
            "seen": result.seen,
            "seconds": seconds,
        }
        if result.loss is not None and whole is None:
            metrics["loss"] = result.loss
        return RoundOutcome(job.key, sent, self._strategy.upload_spec(spec, order.round).hash, metrics)

    def _later_pass(self, order: TrainOrder, key: str) -> RoundOutcome:
        """Another upload of what was trained in this round, without new training and without new cost.

        Under example-level differential privacy the noise is in the steps: whatever is computed from their result is
        post-processing. Noise at the update would cover one upload only; the planner refuses that.
        """
        strategy, number = self._strategy, order.pass_number
        trained = recall_trained(self._store, order.round)
        if number > strategy.passes or trained is None:
            raise SiteError(
                f"Pass {number} of round {order.round} was asked for, but this site did not train in that round with a "
                "strategy of so many passes: the coordinator must begin with the first pass."
            )
        spec = warm_model(self._view).tuned.at_rank(self._rank).spec
        update = strategy.upload_pass(spec, trained.local, trained.start, order.round, number, order.extras)
        layout = strategy.pass_spec(spec, order.round, number)
        layout.check(update)
        outcome = RoundOutcome(key, update, layout.hash, trained.metrics)
        keep_outcome(self._store, outcome, number)
        return outcome

    def _kept(self) -> dict[str, npt.NDArray[np.float32]]:
        """What the strategy kept here after the last round; empty before the first."""
        blob = self._store.get(_KEPT)
        return load(blob) if blob is not None else {}

    def _keep(self, kept: dict[str, npt.NDArray[np.float32]]) -> None:
        if kept:
            self._store.put(_KEPT, save({name: np.ascontiguousarray(array) for name, array in kept.items()}))

    def _pooled(self, order: TrainOrder) -> RoundOutcome:
        """The central comparison: the same LoRA on all partitions at once, without a strategy and without privacy."""
        from strategies.client_round import ClientRound
        from strategies.fedit import FedIT

        warm = warm_model(self._view)
        spec, examples = warm.tuned.spec, self._premises.pool()
        spec.check(order.adapter)
        client = ClientRound(FedIT(), spec, order.adapter, 1)
        # Nobody else trains meanwhile, so the comparison may use every core.
        alone = {"learning_rate": self._config.evaluate.central_rate, "threads": os.cpu_count() or 1}
        chosen = self._view.train.model_copy(update=alone)
        result = Trainer(warm.tuned, warm.collator, chosen).train(
            examples, client, seed=derive_seed("pooled", self._config.run.seed), amount=order.amount
        )
        metrics = {"examples": float(len(examples)), "seen": result.seen, "loss": result.loss or 0.0}
        return RoundOutcome("", warm.tuned.vector() - order.adapter, spec.hash, metrics)

    def secagg(self, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """See Site."""
        secure = self._secure()
        if stage is MessageType.SECAGG_UNMASK and self._premises.lasting:
            # In simulation the coordinator's ledger alone has it; a site of its own keeps count for itself.
            found = secure.sum_plan(step.round)
            if found is not None:
                self._budget.reserve_sum(found[0], step.round, found[1])
        return secure.answer(stage, step, recall_outcome(self._store, pass_number=secure.pass_number))

    def evaluate(self, order: EvaluateOrder) -> dict[str, float]:
        """See Site: the received adapter with what this site keeps of its own, on examples that it never trains on.

        Raises:
            SiteError: evaluation at clients is off, or its counts would tell what privacy or masks are to hide.
        """
        from mllm.tasks.metrics import evaluate

        config = self._config
        if not config.evaluate.clients or config.secagg.enabled or config.privacy.unit != "none":
            raise SiteError(
                "Counts of this site's own examples leave only with evaluate.clients on, secagg.enabled off and "
                "privacy.unit none: nothing was evaluated."
            )
        tuned, adapter = self._received(order.spec_hash, order.adapter, order.round)
        _, held = self._split()
        if not len(held):
            return {"examples": 0.0, "correct": 0.0, "loss": 0.0}
        start = self._strategy.restore(tuned.spec, adapter, self._kept(), order.round)
        tuned.load(start, self._strategy.side(order.extras))
        found = evaluate(
            tuned.model, warm_model(self._view).collator, held, batch_size=config.evaluate.batch_size, limit=0
        )
        right = sum(correct for correct, _ in found.by_type.values())
        return {"examples": float(found.count), "correct": float(right), "loss": found.loss * found.count}

    def ledger(self) -> LedgerSummary:
        """See Site."""
        privacy = self._config.privacy
        if privacy.unit == "none":
            return LedgerSummary(0.0, privacy.delta, 0)
        return self._budget.summary(privacy.delta, Unit(privacy.unit))
