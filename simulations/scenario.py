"""Scenarios: a run, a fleet, its faults and perhaps a sweep, in one TOML file.

Tables ``fleet``, ``faults`` and ``simulation`` are described here, ``sweep`` gives lists of values by option, and every
other table holds options of the run as everywhere else. ``-c key=value`` changes any of them; a list makes a sweep.
"""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from simulations.devices import fleet
from simulations.faults import FaultPlan, Malice
from simulations.world import World, WorldRules
from umbel.cli.options import flatten
from umbel.config import RunConfig
from umbel.config.section import Section
from umbel.errors import ConfigError

SHORT = {"strategy": "strategy.name", "epsilon": "privacy.epsilon", "seed": "run.seed"}
"""Names that a sweep may use for options."""
_MOST_RUNS = 64


class FleetSection(Section):
    """The devices and how a round uses them; everything here runs on the virtual clock."""

    name: str = "hospitals"
    """phones, edge-gpus, hospitals or mixed."""
    step_seconds: float = Field(default=0.172, ge=0, alias="step-seconds", allow_inf_nan=False)
    """Seconds of a step on the median phone (FLHetBench: 172 ms for a ResNet); 0 takes one of this model, here."""
    deadline: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds after which a round no longer waits; 0 waits for everybody."""
    over_selection: float = Field(default=1.0, ge=1, alias="over-selection", allow_inf_nan=False)
    """A round closes when 1/over-selection of the devices asked have arrived."""
    presence: bool = False
    """Whether devices come and go over the day; without it the coordinator asks only devices that are there."""
    memory_gb: float = Field(default=0.0, ge=0, alias="memory-gb", allow_inf_nan=False)
    """Memory that training takes on a device; smaller devices refuse."""


class FaultsSection(Section):
    """Shares of devices, 0 to 1, that fail in a round, or that are hostile in all."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Break off in the middle of a round, at any of its stages."""
    crash: float = Field(default=0.0, ge=0, lt=1)
    """Crash in training."""
    delay: float = Field(default=0.0, ge=0, le=1)
    """Take ten times as long."""
    nan: float = Field(default=0.0, ge=0, le=1)
    """Send values that are not finite."""
    shape: float = Field(default=0.0, ge=0, le=1)
    """Send one value too few."""
    stale: float = Field(default=0.0, ge=0, le=1)
    """Send again what they sent the round before."""
    twice: float = Field(default=0.0, ge=0, le=1)
    """Send everything twice."""
    malicious: float = Field(default=0.0, ge=0, lt=1)
    """Are hostile, always the same devices."""
    malice: Malice = "sign-flip"
    """What hostile devices do: sign-flip, scale or random updates, label-flip or backdoor data."""
    blind: float = Field(default=0.0, ge=0, lt=1)
    """Have no images, only questions; always the same devices."""


class SimulationSection(Section):
    """How the simulation itself runs; no adapter depends on it."""

    actors: int = Field(default=0, ge=0)
    """Processes that play the devices; 0 takes as many as fit."""
    object_store_mb: int = Field(default=512, ge=100, alias="object-store-mb")
    """Size of a local Ray's object store."""


_TABLES: dict[str, type[Section]] = {
    "fleet": FleetSection,
    "faults": FaultsSection,
    "simulation": SimulationSection,
}


@dataclass(frozen=True)
class Scenario:
    """One run of a scenario, with everything settled.

    Attributes:
        name: of the scenario.
        title: one line of what it shows.
        config: the run.
        fleet: its devices.
        faults: what goes wrong.
        simulation: how it is run.
        point: where in a sweep this run stands, by option; empty without one.
    """

    name: str
    title: str
    config: RunConfig
    fleet: FleetSection
    faults: FaultsSection
    simulation: SimulationSection
    point: dict[str, Any]

    @property
    def fault_plan(self) -> FaultPlan:
        """Who sends what that is wrong."""
        f = self.faults
        return FaultPlan(
            seed=self.config.run.seed,
            clients=self.config.federation.clients,
            nan=f.nan,
            shape=f.shape,
            stale=f.stale,
            malicious=f.malicious,
            malice=f.malice,
            blind=f.blind,
        )

    def world(self, step_seconds: float) -> World:
        """The fleet on a new virtual clock, where a step of the median phone takes ``step_seconds``."""
        from simulations.devices import draw_fleet

        config, fleet_, faults = self.config, self.fleet, self.faults
        rules = WorldRules(
            step_seconds=step_seconds,
            steps=config.train.amount,
            deadline=fleet_.deadline,
            over_selection=fleet_.over_selection,
            dropout=faults.dropout,
            crash=faults.crash,
            delay=faults.delay,
            twice=faults.twice,
            presence=fleet_.presence,
            overlapping=config.strategy.buffer > 0,
            secure=config.secagg.enabled,
            up_ratio=config.secagg.bits / 32 if config.secagg.enabled else 1.0,
            memory_gb=fleet_.memory_gb,
        )
        devices = draw_fleet(fleet_.name, config.federation.clients, config.run.seed)
        return World(devices, rules, config.run.seed)

    def behaviour(self) -> dict[str, dict[str, Any]]:
        """Everything besides the run's options that its adapter depends on, for resuming."""
        return {
            "fleet": self.fleet.model_dump(by_alias=True),
            "faults": self.faults.model_dump(by_alias=True),
        }


def scenarios() -> dict[str, Path]:
    """The scenarios that come with the project, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "scenarios").glob("*.toml"))}


def find_scenario(name: str) -> Path:
    """The file of a scenario: its name, or the path of a TOML file.

    Raises:
        ConfigError: there is none.
    """
    known = scenarios()
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return path
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}, or give a TOML file."
    raise ConfigError(f"Scenario {name!r} is unknown: {hint}")


def load_scenario(name: str, overrides: Mapping[str, Any] | None = None) -> list[Scenario]:
    """The runs of a scenario: one, or one for each point of its sweep.

    Args:
        name: of a scenario, or path of a TOML file.
        overrides: options by dotted key, over those of the file.

    Raises:
        ConfigError: no such scenario, a key that does not exist, a wrong value, an unknown fleet, a sweep too large.
    """
    path = find_scenario(name)
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a TOML file as in simulations/scenarios.") from None
    title = str(body.pop("title", path.stem))
    sweep = {SHORT.get(key, key): value for key, value in flatten(body.pop("sweep", {})).items()}
    given = {SHORT.get(key, key): value for key, value in (overrides or {}).items()}
    flat = {**flatten(body), **given}
    sweep = {key: values for key, values in sweep.items() if key not in given}
    for key in dict.fromkeys([*given, *flat]):
        if isinstance(flat[key], list):
            sweep[key] = flat.pop(key)
    for key, values in sweep.items():
        if not (isinstance(values, list) and values):
            raise ConfigError(f"Sweep {key!r} has the value {values!r}, expected a list of values: write [1, 2].")
    points = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    if len(points) > _MOST_RUNS:
        raise ConfigError(f"The sweep has {len(points)} runs, expected at most {_MOST_RUNS}: shorten its lists.")
    return [_settle(path.stem, title, {**flat, **point}, point) for point in points]


def _settle(name: str, title: str, flat: Mapping[str, Any], point: dict[str, Any]) -> Scenario:
    tables: dict[str, dict[str, Any]] = {key: {} for key in _TABLES}
    options: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, option = key.partition(".")
        if table in tables and option:
            tables[table][option] = value
        elif table in RunConfig.model_fields and option:
            options[key] = value
        else:
            raise ConfigError(_unknown(key))
    sections = {key: _section(key, tables[key]) for key in _TABLES}
    fleet_, faults, simulation = (sections[key] for key in _TABLES)
    config = RunConfig.from_flat(options)
    assert isinstance(fleet_, FleetSection)  # for the type checker
    assert isinstance(faults, FaultsSection)
    assert isinstance(simulation, SimulationSection)
    fleet(fleet_.name)
    if faults.nan + faults.shape + faults.stale > 1:
        raise ConfigError("faults.nan, faults.shape and faults.stale add up to more than 1: lower them.")
    return Scenario(name, title, config, fleet_, faults, simulation, point)


def _section(table: str, values: Mapping[str, Any]) -> Section:
    kind = _TABLES[table]
    floats = {field.alias or name for name, field in kind.model_fields.items() if field.annotation is float}
    widened = {key: float(v) if key in floats and type(v) is int else v for key, v in values.items()}
    try:
        return kind.model_validate(widened)
    except ValidationError as error:
        first = error.errors()[0]
        key = f"{table}.{'.'.join(map(str, first['loc']))}"
        if first["type"] == "extra_forbidden":
            raise ConfigError(_unknown(key)) from None
        message = first["msg"]
        raise ConfigError(
            f"Option {key!r} has the value {first['input']!r}: {message[0].lower()}{message[1:]}; change it."
        ) from None


def _unknown(key: str) -> str:
    known = [*RunConfig().to_flat()]
    for table, kind in _TABLES.items():
        known += [f"{table}.{field.alias or name}" for name, field in kind.model_fields.items()]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "'umbel config' and docs/simulation.md list all options."
    return f"Option {key!r} is unknown: {hint}"
