"""One run of a scenario: everything is checked first, then the unchanged coordinator runs on a RayGrid."""

from __future__ import annotations

import json
import os
import resource
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from coordinator.run_folder import RunFolder, read_config, resumable
from coordinator.server_app import run as run_federation
from coordinator.supported import check_privacy, check_supported
from coordinator.tracking import read_metrics
from mllm.warm import warm_task
from simulations.clients import STOCK, ClientSource
from simulations.clock import VirtualRound
from simulations.cluster import RayNode, check_address, local_node, ray_session
from simulations.cost import measured_step
from simulations.faults import FaultyClient
from simulations.ray_grid import RayGrid
from simulations.scenario import Scenario
from simulations.sizing import ActorPlan, plan_actors
from simulations.world import World
from strategies.planner import plan as plan_strategy
from umbel.cli.options import flatten
from umbel.config import RunConfig
from umbel.errors import ConfigError, DataError, UmbelError
from umbel.files import write_atomic
from umbel.paths import runs_root

REPORT = "simulation.json"
SCENARIO = "scenario.toml"

Watch = Callable[[RayGrid, Path], None]
"""Called once a run's grid and folder stand, before the first round."""


def named(scenario: Scenario, place: int = 0, of: int = 1, stamp: str = "") -> Scenario:
    """The same run under an id of its own, unless it has one; runs of a sweep are numbered."""
    given = scenario.config.run.id
    stem = given if given != "auto" else f"{scenario.name}-{stamp or time_stamp()}"
    name = f"{stem}-{place + 1:02d}" if of > 1 else stem
    section = scenario.config.run.model_copy(update={"id": name})
    return replace(scenario, config=scenario.config.model_copy(update={"run": section}))


def time_stamp() -> str:
    """What tells the runs of one scenario apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def check(scenario: Scenario, address: str | None = None) -> None:
    """Refuses what cannot run, before anything starts.

    Raises:
        ConfigError, StrategyError, PlanError, SecAggError: the options do not go together.
        DataError: the data cannot be divided among so many devices.
        FederationError: nothing answers at the cluster's address.
    """
    config = scenario.config
    plan_strategy(config)
    check_supported(config)
    check_privacy(config)
    if address is not None:
        check_address(address)
    task = warm_task(config)
    clients, held = config.federation.clients, len(task.train)
    if clients * config.task.minimum > held:
        raise DataError(
            f"{clients} devices of at least {config.task.minimum} examples each are more than the {held:,} examples of "
            f"task {task.name} can be divided into: lower federation.clients or task.minimum."
        )
    task.partition(clients, config.run.seed)


def layout(scenario: Scenario, nodes: list[RayNode]) -> ActorPlan:
    """What fits on these machines. Raises ConfigError when it does not."""
    wanted = scenario.simulation
    return plan_actors(scenario.config, nodes, actors=wanted.actors, store_mb=float(wanted.object_store_mb))


def simulate(scenario: Scenario, *, address: str | None = None, watch: Watch | None = None) -> Path:
    """Runs or resumes one run of a scenario and returns its folder, which also holds ``simulation.json``.

    Args:
        scenario: with an id of its own (:func:`named`).
        address: ``host:port`` of a Ray cluster to join; None uses this machine.
        watch: is told when the devices stand ready.

    Raises:
        UmbelError: anything that was refused or ended the run; it also stands in the folder's ``error.json``.
    """
    check(scenario, address)
    config = scenario.config
    # Actors count relative folders from wherever their Ray was started: they must mean the same ones as here.
    os.environ.setdefault("UMBEL_ROOT", str(Path.cwd()))
    if address is None:
        layout(scenario, [local_node()])
    with RunFolder.open(config, config.run.id) as folder:
        if folder.finished:
            return folder.path
        try:
            with ExitStack() as stack:
                wanted = scenario.simulation
                nodes = stack.enter_context(ray_session(address, store_mb=wanted.object_store_mb))
                # Ray counts a machine's memory less its own store; what is free is known only here.
                places = nodes if address is not None else [replace(local_node(), cpus=nodes[0].cpus)]
                plan = layout(scenario, places)
                _run(scenario, plan, folder, watch)
        except UmbelError as error:
            folder.fail(error)
            raise
        return folder.path


def _run(scenario: Scenario, plan: ActorPlan, folder: RunFolder, watch: Watch | None) -> None:
    config = scenario.config
    started = time.perf_counter()
    cost = _settle(scenario, folder)
    world = scenario.world(cost)
    if folder.resumed:
        _take_up(folder, world)
    client: ClientSource = FaultyClient(scenario.fault_plan) if scenario.fault_plan.any else STOCK
    with RayGrid(
        config.federation.clients,
        config.to_flat(),
        client=client,
        actors=plan.actors,
        lanes=plan.lanes,
        cpus=plan.cpus,
        gpus=plan.gpus,
        world=world,
    ) as grid:
        ready = time.perf_counter()

        def save() -> None:
            _save(folder.path / REPORT, scenario, plan, grid, world, started, ready)

        world.on_change = save
        if watch is not None:
            watch(grid, folder.path)
        run_federation(grid, config, folder)
        save()


def _settle(scenario: Scenario, folder: RunFolder) -> float:
    """Leaves the scenario beside the run's options and returns what a step costs, measured at most once a run.

    Raises:
        ConfigError: the run that is resumed was started with another fleet or other faults.
    """
    path = folder.path / SCENARIO
    if not folder.resumed:
        cost = scenario.fleet.step_seconds or measured_step(scenario.config)
        own = {"name": scenario.name, "step-seconds": cost, **scenario.behaviour()}
        write_atomic(path, tomli_w.dumps(own).encode())
        return cost
    saved = read_scenario(folder.path)
    behaviour = scenario.behaviour()
    if any(saved.get(key) != value for key, value in behaviour.items()):
        raise ConfigError(
            f"Run {folder.id!r} was started with another fleet or other faults ({path}): resume it with the same or "
            "choose another run.id."
        )
    return float(saved["step-seconds"])


def _take_up(folder: RunFolder, world: World) -> None:
    """Sets the clock to where the rounds that are finished ended."""
    done = len(read_metrics(folder.metrics).rounds)
    rounds = read_report(folder.path).get("virtual", {}).get("rounds", [])
    lines = [VirtualRound(**line) for line in rounds if str(line["round"]).isdecimal() and int(line["round"]) <= done]
    world.clock.resume(lines)


def read_scenario(folder: Path) -> dict[str, Any]:
    """``scenario.toml`` of a run; empty when there is none or it cannot be read."""
    try:
        return tomllib.loads((folder / SCENARIO).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}


def settled_options(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that ``run.id`` names, where it can be resumed: nobody needs to repeat them."""
    name, directory = overrides.get("run.id", "auto"), overrides.get("run.directory", "runs")
    if not isinstance(name, str) or not isinstance(directory, str) or name == "auto":
        return {}
    folder = runs_root(directory) / name
    if not resumable(folder):
        return {}
    saved = read_config(folder).to_flat()
    options: dict[str, Any] = {key: value for key, value in saved.items() if key not in ("run.id", "run.directory")}
    known = read_scenario(folder)
    return options | flatten({key: known.get(key, {}) for key in ("fleet", "faults")})


def _save(
    path: Path, scenario: Scenario, plan: ActorPlan, grid: RayGrid, world: World, started: float, ready: float
) -> None:
    now = time.perf_counter()
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    body: Mapping[str, Any] = {
        "scenario": scenario.name,
        "point": scenario.point,
        "fleet": scenario.fleet.name,
        "seconds": now - started,
        "startup_seconds": ready - started,
        "actors": plan.actors,
        "lanes": plan.lanes,
        "actor_seconds": grid.busy_seconds,
        "actors_replaced": grid.replaced,
        "coordinator_peak_mb": usage,
        "virtual": world.report(),
    }
    write_atomic(path, json.dumps(body, indent=1).encode())


def read_report(folder: Path) -> dict[str, Any]:
    """``simulation.json`` of a run; empty when there is none or it cannot be read."""
    try:
        body = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def options_of(config: RunConfig) -> dict[str, Any]:
    """The run's options that differ from the defaults, for showing."""
    default = RunConfig().to_flat()
    return {key: value for key, value in config.to_flat().items() if default[key] != value}
