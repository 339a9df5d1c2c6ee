"""The Flower ServerApp: validates the run, opens its folder, runs the federation and leaves the results."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.asynchronous import AsynchronousFederation
from coordinator.central_dp import CentralMechanism
from coordinator.client_evaluation import ClientEvaluator
from coordinator.collect import BookedCollector, Collector, GroupedCollector, PlainCollector, SecureCollector
from coordinator.courier import Courier
from coordinator.evaluation import Evaluator
from coordinator.federation import Federation
from coordinator.population import Participant, discover
from coordinator.privacy_record import PrivacyRecord
from coordinator.pulling import most_bytes
from coordinator.results import describe_results, leave_results
from coordinator.run_folder import RunFolder
from coordinator.supported import check_privacy, check_supported
from coordinator.tracking import Tracker
from mllm.tasks.base import Task
from mllm.warm import WarmModel, warm_model, warm_task
from privacy.plan import PrivacyPlan
from privacy.secagg import Roster
from privacy.secagg.agreement import client_plan
from privacy.secagg.pinned import pinned_roster
from privacy.secagg.simulated import roster_of
from strategies.base import AdapterStrategy
from strategies.planner import plan, plan_warnings, quantizer
from umbel import __version__, logs
from umbel.adapter import AdapterSpec
from umbel.config import RunConfig
from umbel.errors import UmbelError

logger = logging.getLogger("flwr.umbel")
app = ServerApp()

ROSTER = "UMBEL_ROSTER"
"""Environment variable: the folder with authority.pub, roster.json and roster.sig of a deployed federation."""
_VERSIONS = ("flwr", "torch", "transformers", "peft", "bitsandbytes", "torchao", "opacus", "ray", "cryptography")


Attach = Callable[[Grid, RunConfig], Grid]
"""What stands between the run and its grid; it may ask clients, so it is called once all else has been checked."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """See :func:`coordinate`."""
    coordinate(grid, context)


def coordinate(grid: Grid, context: Context, attach: Attach | None = None) -> None:
    """Runs one federation from Flower's run configuration.

    Raises:
        UmbelError: anything that ended the run, in one sentence; it also stands in ``error.json`` of the run folder.
    """
    logs.structured()
    try:
        config = RunConfig.from_flat(context.run_config)
        check_supported(config)
        check_privacy(config)
    except UmbelError as error:
        logger.error("%s", error)
        raise
    with (
        RunFolder.open(config, context.run_id) as folder,
        logs.about(run=folder.id),
        logs.kept(folder.path / "log.jsonl"),
    ):
        try:
            run(grid, config, folder, attach)
        except UmbelError as error:
            folder.fail(error)
            logger.error("%s", error)
            raise


def run(grid: Grid, config: RunConfig, folder: RunFolder, attach: Attach | None = None) -> None:
    """Runs or resumes the federation of ``folder`` on any Grid. A finished run is left as it is."""
    if folder.finished:
        logger.info("Run %s is finished: %s", folder.id, folder.path)
        return
    started = time.perf_counter()
    strategy = plan(config)
    for sentence in plan_warnings(config):
        logger.warning("%s", sentence)
    task = warm_task(config)
    if task.skipped:
        logger.warning("%d lines of the data are left out, first: %s", len(task.skipped), task.skipped[0])
    warm = warm_model(config)
    if attach is not None:
        grid = attach(grid, config)
    courier = Courier(grid)
    evaluator = Evaluator(warm, task, config.evaluate)
    spec, initial = warm.tuned.spec, warm.initial
    population = discover(courier, spec, config.federation, mixed=config.strategy.ranks == "mixed")
    upload = strategy.upload_spec(spec, 1)
    courier.expect(most_bytes(spec.size + upload.size))
    promise = _client_plan(config, len(population), upload)
    record = PrivacyRecord(config, folder.path, promise)
    collector = _collector(config, courier, strategy, population, folder, promise, upload)
    clients = ClientEvaluator(courier, timeout=config.federation.timeout) if config.evaluate.clients else None
    parts = (config, strategy, spec, population, collector, evaluator, folder, record, clients)
    federation = AsynchronousFederation(grid, *parts) if config.strategy.buffer else Federation(*parts)
    checkpoint = federation.begin(initial)
    tracker = Tracker(folder.metrics)
    if checkpoint.round == 0:
        facts = _facts(config, warm, task, len(population))
        secagg = collector.describe(_cohort_size(config, len(population)), upload.size)
        baseline = federation.everything(0, checkpoint.state)
        tracker.start(**facts, privacy=record.promised(), secagg=secagg, baseline=baseline)
    state = federation.run(checkpoint)
    if config.evaluate.central:
        federation.central(initial)
    # Before the end line: whoever reads that a run has ended finds its adapter.
    leave_results(folder, warm, state.adapter, strategy.side(state.arrays))
    tracker.end(
        rounds=config.federation.rounds,
        seconds=time.perf_counter() - started,
        evaluation=federation.everything(config.federation.rounds, state),
    )
    describe_results(folder)
    logger.info("Run %s has ended; its results lie in %s", folder.id, folder.path)


def _client_plan(config: RunConfig, population: int, upload: AdapterSpec) -> PrivacyPlan | None:
    """The plan that the coordinator books, or None where there is none or every site books its own."""
    if config.privacy.unit != "client" or config.privacy.place == "update":
        return None
    if config.secagg.enabled:
        return client_plan(config, _cohort_size(config, population), upload.size)
    return PrivacyPlan.from_config(config)


def _cohort_size(config: RunConfig, population: int) -> int:
    return population if config.federation.cohort == "all" else min(config.federation.cohort_size, population)


def _collector(
    config: RunConfig,
    courier: Courier,
    strategy: AdapterStrategy,
    population: list[Participant],
    folder: RunFolder,
    promise: PrivacyPlan | None,
    upload: AdapterSpec,
) -> Collector:
    central: CentralMechanism | None = None
    collector: Collector
    if config.secagg.enabled:
        roster = _roster(population)
        collector = SecureCollector(courier, config, roster, run=folder.id, folder=folder.checkpoint)
    else:
        if promise is not None:
            central = CentralMechanism(promise, config, upload)
        collector = PlainCollector(
            courier,
            timeout=config.federation.timeout,
            by_examples=config.federation.weights == "examples",
            keep_uploads=not (strategy.facts.linear or config.strategy.groups),
            central=central,
            quantized=quantizer(config) is not None,
        )
    if config.strategy.groups:
        collector = GroupedCollector(collector, config.strategy.groups, seed=config.run.seed)
    if promise is None:
        return collector
    return BookedCollector(
        collector,
        promise,
        ledger=folder.path / "privacy.sqlite",
        folder=folder.checkpoint,
        dataset="population",
        run=folder.id,
        central=central,
    )


def _roster(population: Sequence[Participant]) -> Roster:
    """The roster that provisioning signed, from the folder that ROSTER names; else that of simulated sites.

    It only serves the coordinator to notice a wrong signature early: every site goes by the roster that it pinned.

    Raises:
        DeployError, SecAggError: the folder holds no roster with its authority's signature.
    """
    folder = os.environ.get(ROSTER)
    if folder:
        return pinned_roster(Path(folder).expanduser())[0]
    return roster_of(member.site for member in population)


def _facts(config: RunConfig, warm: WarmModel, task: Task, clients: int) -> dict[str, object]:
    report = warm.base.report
    return {
        "umbel": __version__,
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "base": {
            "name": warm.base.name,
            "hash": warm.base.hash,
            "quantization": report.backend,
            "parameters": sum(p.numel() for p in warm.base.model.parameters()),
            "bytes": report.bytes_after,
        },
        "adapter": {"size": warm.tuned.spec.size, "spec_hash": warm.tuned.spec.hash},
        "task": {
            "name": task.name,
            "headline": task.headline,
            "fingerprint": task.fingerprint,
            "skipped": list(task.skipped),
        },
        "clients": clients,
    }
