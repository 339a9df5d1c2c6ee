"""The round loop: cohort, broadcast, collect, step, evaluate, checkpoint; resumable after any kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coordinator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coordinator.client_evaluation import ClientEvaluator
from coordinator.cohort import draw_cohort
from coordinator.collect import Broadcast, Collected, Collector
from coordinator.evaluation import Evaluator
from coordinator.passes import later_passes
from coordinator.population import Participant
from coordinator.privacy_record import PrivacyRecord
from coordinator.run_folder import RunFolder
from coordinator.tracking import Tracker, read_metrics
from strategies.base import AdapterStrategy, StrategyState
from umbel.adapter import AdapterSpec, Vector
from umbel.config import RunConfig
from umbel.errors import FederationError
from umbel.logs import about

logger = logging.getLogger("flwr.umbel")

_WORKER_DIED = "ActorDiedError"  # Ray's own name in a node's report


class Federation:
    """One run over a population that is already known.

    After each round the metrics line is written first and the checkpoint second: a run killed in between drops the
    line and repeats the round. Without noise the resumed run ends in the bit-identical adapter.
    """

    def __init__(
        self,
        config: RunConfig,
        strategy: AdapterStrategy,
        spec: AdapterSpec,
        population: Sequence[Participant],
        collector: Collector,
        evaluator: Evaluator,
        folder: RunFolder,
        privacy: PrivacyRecord,
        clients: ClientEvaluator | None = None,
    ) -> None:
        self._config = config
        self._strategy = strategy
        self._spec = spec
        self._population = population
        self._collector = collector
        self._evaluator = evaluator
        self._folder = folder
        self._privacy = privacy
        self._clients = clients
        self._tracker = Tracker(folder.metrics)

    def begin(self, initial: Vector) -> Checkpoint:
        """The checkpoint to go on from; round 0 when there is none."""
        found = load_checkpoint(self._folder.checkpoint, self._spec)
        # Also without a checkpoint: a coordinator killed in round 1 may have written that round's line.
        self._tracker.resume(found.round if found is not None else 0)
        if found is not None:
            logger.info("Resuming after round %d", found.round)
            return found
        return Checkpoint(0, self._strategy.initial(self._spec, initial), self._spec.hash)

    def run(self, checkpoint: Checkpoint) -> StrategyState:
        """Runs the rounds that are left.

        Raises:
            FederationError: a round had fewer survivors than ``federation.minimum``; earlier rounds are kept.
        """
        state = checkpoint.state
        for number in range(checkpoint.round + 1, self._config.federation.rounds + 1):
            with about(round_number=number):
                state = self._round(number, state)
            save_checkpoint(self._folder.checkpoint, Checkpoint(number, state, self._spec.hash))
        return state

    def _round(self, number: int, state: StrategyState) -> StrategyState:
        started = time.perf_counter()
        cohort = self._cohort(number)
        collected = self._collector.collect(cohort, self._broadcast(number, state))
        collected, between = later_passes(
            self._strategy,
            self._spec,
            self._collector,
            cohort,
            collected,
            state,
            number,
            lambda middle, pass_number: self._later_broadcast(number, middle, pass_number),
            minimum=self._config.federation.minimum,
        )
        gathered = time.perf_counter()
        state = self._step(number, cohort, collected, between)
        self._record(number, len(cohort), collected, state, started=started, gathered=gathered, asked=cohort)
        return state

    def _record(
        self,
        number: int,
        cohort: int,
        collected: Collected,
        state: StrategyState,
        *,
        started: float,
        gathered: float,
        more: dict[str, Any] | None = None,
        asked: Sequence[Participant] | None = None,
    ) -> None:
        """Evaluates what a round gave and writes its line.

        Args:
            more: goes into the line as it is.
            asked: the clients that evaluate, if clients do; everybody by default.
        """
        stepped = time.perf_counter()
        evaluation = self._evaluate(number, state, asked)
        ended = time.perf_counter()
        self._tracker.round(
            round=number,
            cohort=cohort,
            survivors=len(collected.survivors),
            rejected=collected.rejections,
            reasons=collected.rejected,
            missing=collected.missing,
            train_loss=collected.metrics.get("loss"),
            examples=collected.metrics.get("seen", 0.0),
            seconds={
                "collect": gathered - started,
                "step": stepped - gathered,
                "evaluate": ended - stepped,
                "total": ended - started,
            },
            bytes_up=collected.bytes_up,
            bytes_down=collected.bytes_down,
            evaluation=evaluation,
            privacy=self._privacy.spent(number),
            secagg=collected.secagg,
            **(more or {}),
        )
        self._log(number, cohort, collected, evaluation, ended - started)

    def _cohort(self, number: int) -> list[Participant]:
        config = self._config
        secret = config.privacy.unit == "client"
        return draw_cohort(config.federation, self._population, number, config.run.seed, private=secret)

    def _broadcast(self, number: int, state: StrategyState) -> Broadcast:
        strategy, spec = self._strategy, self._spec
        cached: dict[int, tuple[AdapterSpec, Vector]] = {}

        def adapter(rank: int) -> tuple[AdapterSpec, Vector]:
            if rank not in cached:
                own = spec if rank == spec.lora.rank else spec.with_rank(rank)
                cached[rank] = (own, strategy.download(state, own, number))
            return cached[rank]

        extras = strategy.extras(state, spec, number)
        layouts = self._layouts(lambda own: strategy.upload_spec(own, number))
        return Broadcast(number, spec, adapter, strategy.upload_spec(spec, number), extras=extras, layouts=layouts)

    def _later_broadcast(self, number: int, state: StrategyState, pass_number: int) -> Broadcast:
        """The extras alone: the clients keep what they were sent and what they trained."""
        strategy, spec = self._strategy, self._spec
        nothing = np.zeros(0, dtype=np.float32)
        return Broadcast(
            number,
            spec,
            lambda rank: (spec.with_rank(rank), nothing),
            strategy.pass_spec(spec, number, pass_number),
            extras=strategy.extras(state, spec, number),
            layouts=self._layouts(lambda own: strategy.pass_spec(own, number, pass_number)),
            pass_number=pass_number,
        )

    def _layouts(self, layout: Callable[[AdapterSpec], AdapterSpec]) -> dict[int, AdapterSpec]:
        ranks = {member.rank for member in self._population} - {self._spec.lora.rank}
        return {rank: layout(self._spec.with_rank(rank)) for rank in sorted(ranks)}

    def _step(
        self, number: int, cohort: Sequence[Participant], collected: Collected, state: StrategyState
    ) -> StrategyState:
        survivors, minimum = len(collected.survivors), self._config.federation.minimum
        died = next((reason for reason in collected.rejected if _WORKER_DIED in reason), None)
        if died is not None:  # Flower keeps a dead worker in its pool, where it fails every client it is given
            raise FederationError(
                f"A worker process of the simulation died in round {number}, perhaps for lack of memory: run again "
                f"with the same run.id to resume with fresh workers. Its end: {died}"
            )
        for reason, count in sorted(collected.rejected.items()):
            logger.warning("Round %d: %d replies were not used: %s", number, count, reason)
        if collected.lost:
            return state
        if survivors < minimum and not collected.noised:
            if self._config.federation.cohort == "poisson" and len(cohort) < minimum:
                logger.warning("Round %d: the Poisson cohort has %d members; nothing changes", number, len(cohort))
                return state
            why = max(collected.rejected, key=lambda reason: collected.rejected[reason], default="they stayed silent")
            raise FederationError(
                f"Round {number} ended with {survivors} of {len(cohort)} clients and federation.minimum is {minimum}: "
                f"mend the clients and run again with the same run.id to resume. The commonest reason: {why}"
            )
        if collected.mean is None:
            return self._strategy.step_individual(self._spec, collected.uploads, state, number)
        return self._strategy.step(self._spec, collected.mean, state, number)

    def _evaluate(
        self, number: int, state: StrategyState, asked: Sequence[Participant] | None
    ) -> dict[str, dict[str, Any]] | None:
        every = self._config.evaluate.every
        if every == 0 or number % every:
            return None
        found = self._evaluator.headline(state.adapter, self._strategy.side(state.arrays))
        return found | self._at_clients(number, state, asked or self._population)

    def everything(self, number: int, state: StrategyState) -> dict[str, dict[str, Any]]:
        """What beginning and end report of ``state``: all evaluation sets, and every client's held-out data.

        Args:
            number: finished rounds.
            state: after them.
        """
        found = self._evaluator.everything(state.adapter, self._strategy.side(state.arrays))
        return found | self._at_clients(number, state, self._population)

    def _at_clients(
        self, number: int, state: StrategyState, members: Sequence[Participant]
    ) -> dict[str, dict[str, Any]]:
        if self._clients is None:
            return {}
        return self._clients.measure(members, self._broadcast(max(number, 1), state))

    def central(self, initial: Vector) -> None:
        """Trains the same LoRA on pooled data for as many examples as the rounds saw, and records how it does.

        One site of a simulation trains; a real site refuses.
        """
        started = time.perf_counter()
        seen = sum(float(getattr(line, "examples", 0.0)) for line in read_metrics(self._folder.metrics).rounds)
        steps = max(1, round(seen / self._config.train.batch_size))
        logger.info("Central comparison: %d steps on the pooled data", steps)
        broadcast = Broadcast(
            0,
            self._spec,
            lambda _rank: (self._spec, initial),
            self._spec,
            pooled=True,
            patience=self._config.federation.rounds,
            amount=steps,
        )
        collected = self._collector.collect(self._population[:1], broadcast)
        if collected.mean is None:
            reason = next(iter(collected.rejected), "it stayed silent")
            logger.warning("The central comparison failed: %s", reason)
            return
        self._tracker.central(
            evaluation=self._evaluator.everything(initial + collected.mean),
            seconds=time.perf_counter() - started,
            examples=round(collected.metrics.get("seen", 0.0)),
        )

    def _log(
        self,
        number: int,
        cohort: int,
        collected: Collected,
        evaluation: dict[str, dict[str, Any]] | None,
        seconds: float,
    ) -> None:
        measured = "".join(
            f", {name} accuracy {figures['accuracy']:.1%}" for name, figures in (evaluation or {}).items()
        )
        logger.info(
            "Round %d/%d: %d of %d clients%s%s, %.1f s",
            number,
            self._config.federation.rounds,
            len(collected.survivors),
            cohort,
            f", loss {collected.metrics['loss']:.4f}" if "loss" in collected.metrics else "",
            measured,
            seconds,
        )
