"""LocalSite: the site in this process, for simulation and for the site agent."""

from __future__ import annotations

import os
import time

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from client.batches import derive_seed
from client.budget import SiteBudget, example_plan, noised_update, private_steps, update_plan
from client.outcome import RoundOutcome, keep_outcome, order_key, recall_outcome
from client.private import PrivateSteps
from client.sealed import SealedStore
from client.secure import SecureRound
from client.site import LedgerSummary, Site
from client.store import FileStore, NodeStore
from client.trainer import Trainer, learning_rate
from mllm.tasks.base import ExampleSet
from mllm.warm import WarmModel, warm_model, warm_task
from privacy.secagg import FileGuard
from privacy.secagg.simulated import simulated_identity, simulated_name, simulated_roster
from privacy.terms import Unit
from strategies.base import AdapterStrategy
from strategies.planner import plan as plan_strategy
from strategies.planner import quantizer
from umbel import __version__
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.errors import SiteError
from umbel.machine import derived
from umbel.paths import runs_root
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

_KEPT = "kept"


class LocalSite(Site):
    """One partition of the task's data, trained by a model that this process keeps warm.

    Args:
        config: of the run.
        index: which partition, from 0.
        count: how many partitions there are; must equal ``federation.clients``.
        store: what this device remembers from message to message.
        run: identifies the run, for the ledger.
    """

    def __init__(self, config: RunConfig, index: int, count: int, store: NodeStore, *, run: str) -> None:
        if count != config.federation.clients:
            raise SiteError(
                f"This federation has {count} nodes but federation.clients is {config.federation.clients}: "
                "start as many nodes as clients (umbel run does), or set federation.clients."
            )
        self._config = config
        self._index = index
        self._run = run if config.run.id == "auto" else config.run.id
        self._folder = runs_root(config.run.directory) / self._run / "sites" / self.name
        # What budget was paid for must survive a restart; everything else may live with the run's messages.
        kept: NodeStore = store if config.privacy.unit == "none" else FileStore(self._folder)
        self._store = SealedStore(kept, derived("site store"), f"{self._run}/{self.name}")
        self._strategy: AdapterStrategy = plan_strategy(config)

    @property
    def name(self) -> str:
        """The device's name: its partition."""
        return simulated_name(self._index)

    @property
    def _budget(self) -> SiteBudget:
        dataset = f"{warm_task(self._config).fingerprint[:16]}/{self._config.federation.clients}/{self.name}"
        return SiteBudget(self._folder / "ledger.sqlite", dataset=dataset, run=self._run)

    def _model(self, spec_hash: str) -> WarmModel:
        warm = warm_model(self._config)
        if warm.tuned.spec.hash != spec_hash:
            raise SiteError(
                f"The coordinator's adapter spec {spec_hash[:12]} is not this site's {warm.tuned.spec.hash[:12]}: "
                "both ends must load the same base and LoRA configuration."
            )
        return warm

    def _examples(self) -> ExampleSet:
        return warm_task(self._config).client(self._index, self._config.federation.clients, self._config.run.seed)

    def describe(self) -> Description:
        """See Site."""
        warm = warm_model(self._config)
        return Description(
            site=self.name,
            spec_hash=warm.tuned.spec.hash,
            base_hash=warm.base.hash,
            rank=self._config.lora.rank,
            version=__version__,
        )

    def train(self, order: TrainOrder) -> TrainReply | SecAggStep:
        """See Site. The same order again gives the same reply, without training or paying again."""
        warm = self._model(order.spec_hash)
        warm.tuned.spec.check(order.adapter)
        if order.pooled:
            outcome = self._pooled(warm, order)
        else:
            key = order_key(order, self._config)
            outcome = recall_outcome(self._store, key) or self._fit(warm, order, key)
        if order.secagg is not None and not order.pooled:
            return self._secure().begin(order.secagg, order.round, order.adapter, outcome.update.size)
        if self._config.secagg.enabled and not order.pooled:
            raise SiteError("A plain update was asked for, but this run aggregates securely: nothing was sent.")
        return TrainReply(outcome.spec_hash, outcome.update, outcome.metrics)

    def _secure(self) -> SecureRound:
        return SecureRound(
            self._config,
            simulated_identity(self.name),
            simulated_roster(self._config.federation.clients),
            self._store,
            derived("secure round"),
            FileGuard(self._folder / "once"),
        )

    def _fit(self, warm: WarmModel, order: TrainOrder, key: str) -> RoundOutcome:
        """Trains on this site's own examples, paying first, and keeps what came out."""
        started, spec, examples = time.perf_counter(), warm.tuned.spec, self._examples()
        blob = self._store.get(_KEPT)
        kept = load(blob) if blob is not None else {}
        client = self._strategy.begin(spec, order.adapter, order.round, order.extras, kept)
        private: PrivateSteps | None = None
        settle = None
        plan = example_plan(self._config, len(examples))
        if plan is not None:
            self._budget.reserve(plan, order.round)
            values = sum(spec.by_name[name].size for name in client.trainable)
            owner = f"{self._run}/{self.name}"
            private, settle = private_steps(
                plan, self._config, owner=owner, values=values, round_number=order.round, store=self._store
            )
        seed = derive_seed("train", self._config.run.seed, self.name, order.round)
        rounds = self._config.federation.rounds
        span = ((order.round - 1) / rounds, order.round / rounds)
        result = Trainer(warm.tuned, warm.collator, self._config.train).train(
            examples, client, seed=seed, amount=order.amount, private=private, span=span
        )
        if settle is not None:
            settle()
        local = warm.tuned.vector()
        update = client.finish(
            local, steps=result.steps, learning_rate=learning_rate(self._config.train, sum(span) / 2)
        )
        whole = update_plan(self._config)
        if whole is not None:
            self._budget.reserve(whole, order.round)
            update = noised_update(whole, self._config, update, self._strategy.upload_spec(spec, order.round))
        sent: Vector | npt.NDArray[np.uint8] = update
        quantize = quantizer(self._config)
        if quantize is not None:
            rounding = derive_seed("quantize", self._config.run.seed, self.name, order.round)
            data = quantize.encode(update, rounding)
            client.encoded(update, quantize.decode(data))
            sent = np.frombuffer(data, dtype=np.uint8)
        metrics = {
            "examples": float(len(examples)),
            "seen": result.seen,
            "seconds": time.perf_counter() - started,
        }
        if result.loss is not None and whole is None:
            metrics["loss"] = result.loss
        outcome = RoundOutcome(key, sent, self._strategy.upload_spec(spec, order.round).hash, metrics)
        self._keep(client.keep(local))
        keep_outcome(self._store, outcome)
        return outcome

    def _keep(self, kept: dict[str, npt.NDArray[np.float32]]) -> None:
        if kept:
            self._store.put(_KEPT, save({name: np.ascontiguousarray(array) for name, array in kept.items()}))

    def _pooled(self, warm: WarmModel, order: TrainOrder) -> RoundOutcome:
        """The central comparison: the same LoRA on all partitions at once, without a strategy and without privacy."""
        from strategies.client_round import ClientRound
        from strategies.fedit import FedIT

        spec, examples = warm.tuned.spec, warm_task(self._config).train
        client = ClientRound(FedIT(), spec, order.adapter, 1)
        # Nobody else trains meanwhile, so the comparison may use every core.
        alone = {"learning_rate": self._config.evaluate.central_rate, "threads": os.cpu_count() or 1}
        chosen = self._config.train.model_copy(update=alone)
        result = Trainer(warm.tuned, warm.collator, chosen).train(
            examples, client, seed=derive_seed("pooled", self._config.run.seed), amount=order.amount
        )
        metrics = {"examples": float(len(examples)), "seen": result.seen, "loss": result.loss or 0.0}
        return RoundOutcome("", warm.tuned.vector() - order.adapter, spec.hash, metrics)

    def secagg(self, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """See Site."""
        return self._secure().answer(stage, step, recall_outcome(self._store))

    def evaluate(self, order: EvaluateOrder) -> dict[str, float]:
        """See Site: on this partition's training examples, the only data that a simulated device holds."""
        from mllm.tasks.metrics import evaluate

        warm = self._model(order.spec_hash)
        warm.tuned.load(order.adapter)
        found = evaluate(
            warm.tuned.model,
            warm.collator,
            self._examples(),
            batch_size=self._config.evaluate.batch_size,
            limit=self._config.evaluate.limit,
        )
        return {
            "examples": float(found.count),
            "correct": found.accuracy * found.count,
            "loss": found.loss * found.count,
        }

    def ledger(self) -> LedgerSummary:
        """See Site."""
        privacy = self._config.privacy
        if privacy.unit == "none":
            return LedgerSummary(0.0, privacy.delta, 0)
        return self._budget.summary(privacy.delta, Unit(privacy.unit))
