"""LocalSite: the site in this process, for simulation and for the site agent."""

from __future__ import annotations

import time

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from client.batches import derive_seed
from client.site import LedgerSummary, Site
from client.store import NodeStore
from client.trainer import Trainer, TrainResult
from mllm.tasks.base import ExampleSet
from mllm.warm import WarmModel, warm_model, warm_task
from strategies.base import AdapterStrategy
from strategies.registry import make_strategy
from umbel import __version__
from umbel.adapter import AdapterSpec, Vector
from umbel.config import RunConfig
from umbel.errors import SiteError
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

_PERSONAL = "personal"


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
        self._store = store
        self._run = run
        self._strategy: AdapterStrategy = make_strategy(config.strategy.name)

    @property
    def name(self) -> str:
        """The device's name: its partition."""
        return f"{self._index:06d}"

    def _model(self, spec_hash: str) -> WarmModel:
        warm = warm_model(self._config)
        if warm.tuned.spec.hash != spec_hash:
            raise SiteError(
                f"The coordinator's adapter spec {spec_hash[:12]} is not this site's {warm.tuned.spec.hash[:12]}: "
                "both ends must load the same base and LoRA configuration."
            )
        return warm

    def _examples(self, pooled: bool = False) -> ExampleSet:
        task, federation = warm_task(self._config), self._config.federation
        if pooled:
            return task.train
        return task.client(self._index, federation.clients, self._config.run.seed)

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
        """See Site."""
        warm = self._model(order.spec_hash)
        spec = warm.tuned.spec
        received = order.adapter
        spec.check(received)
        started = time.perf_counter()
        local, result = self._fit(warm, order)
        update = self._strategy.upload(spec, local, received, order.round)
        metrics = {
            "examples": float(len(self._examples(order.pooled))),
            "seen": float(result.examples),
            "loss": result.loss,
            "seconds": time.perf_counter() - started,
        }
        return TrainReply(self._strategy.upload_spec(spec, order.round).hash, update, metrics)

    def _fit(self, warm: WarmModel, order: TrainOrder) -> tuple[Vector, TrainResult]:
        spec = warm.tuned.spec
        start = self._restore_personal(spec, order)
        warm.tuned.load(start)
        trainer = Trainer(warm.tuned, warm.collator, self._config.train)
        owner = "pooled" if order.pooled else self.name
        result = trainer.train(
            self._examples(order.pooled),
            seed=derive_seed("train", self._config.run.seed, owner, order.round),
            trainable=self._strategy.trainable(spec, order.round),
            amount=order.amount,
        )
        local = warm.tuned.vector()
        self._keep_personal(spec, local, order)
        return local, result

    def _restore_personal(self, spec: AdapterSpec, order: TrainOrder) -> Vector:
        """The received adapter with this device's own tensors in place of the global ones."""
        names, blob = self._strategy.personal(spec, order.round), self._store.get(_PERSONAL)
        if not names or blob is None or order.pooled:
            return order.adapter
        start = order.adapter.copy()
        views, kept = spec.views(start), load_arrays(blob)
        for name in names & kept.keys():
            views[name][...] = kept[name]
        return start

    def _keep_personal(self, spec: AdapterSpec, local: Vector, order: TrainOrder) -> None:
        names = self._strategy.personal(spec, order.round)
        if names and not order.pooled:
            views = spec.views(local)
            self._store.put(_PERSONAL, save_arrays({name: np.ascontiguousarray(views[name]) for name in sorted(names)}))

    def secagg(self, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """See Site."""
        raise SiteError("This run does not use secure aggregation: set secagg.enabled=true.")

    def evaluate(self, order: EvaluateOrder) -> dict[str, float]:
        """See Site: on this partition's training examples, the only data a simulated device holds."""
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
        return LedgerSummary(epsilon=0.0, delta=self._config.privacy.delta, events=0)
