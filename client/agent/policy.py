"""site.toml: what the site's owner allows. What is not allowed there is refused."""

from __future__ import annotations

import os
import tomllib
from datetime import datetime, time
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from umbel.errors import SiteError

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_HASH = r"^[0-9a-f]{64}$"

Place = Literal["step", "update", "secagg", "coordinator", "none"]


class Rule(BaseModel):
    """A table of site.toml: unknown keys are refused, and so are values of another type."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, populate_by_name=True
    )


class Keys(Rule):
    """Keys; relative paths count from the folder of site.toml."""

    identity: str = "identity"
    """Folder with identity.key, authority.pub, roster.json and roster.sig (``privacy.secagg.pinned``)."""
    seal: str = "seal.key"
    """32 bytes in hexadecimal under which the site seals what it keeps of a run."""


class Listen(Rule):
    """Where the agent listens for couriers; nothing is listened on that is not named."""

    address: str = ""
    """``host:port`` for couriers with certificates; needs ``tls``."""
    tls: str = ""
    """Folder with ca.pem, cert.pem, key.pem and perhaps crl.pem."""
    roles: tuple[str, ...] = Field(default=("client",), strict=False)
    """Roles (organizational units of certificates) that may call."""

    @field_validator("roles")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("no role is named, so nobody could call: name roles of certificates, or leave roles out")
        return value


class Coordinator(Rule):
    """A coordinator whose runs may be brought here. The agent knows it by the way its courier comes in."""

    name: str = Field(pattern=_NAME)
    socket: str = ""
    """Unix socket for the courier of this coordinator alone."""
    callers: tuple[str, ...] = Field(default=(), strict=False)
    """Common names of certificates that this coordinator's couriers show."""

    @model_validator(mode="after")
    def _reachable(self) -> Coordinator:
        if not self.socket and not self.callers:
            raise ValueError(f"coordinator {self.name} has neither a socket nor callers, so nobody could come from it")
        return self


class Model(Rule):
    """A base model that may be tuned here."""

    name: str = Field(min_length=1)
    """What a run calls it: model.name, with size and weights as in ``bunny-v1:tiny``, ``bunny-v1=DIRECTORY``."""
    path: str = ""
    """Where it lies at this site; empty takes the name."""
    hash: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of its files, as ``umbel site check`` prints it; empty takes any."""


class Data(Rule):
    """A data set that runs may train on, and what it may cost."""

    name: str = Field(min_length=1)
    """What a run calls it (task.data), and the ledger's id: never use one name for two data sets."""
    task: Literal["folder", "easy-vqa"] = "folder"
    root: str = ""
    """The folder; for easy-vqa empty."""
    columns: tuple[str, ...] = Field(default=(), strict=False)
    """Fields of a line that a run may use."""
    part: Literal["all"] | int = "all"
    """All examples, or only the part of this number when a run divides the data set among its clients."""
    epsilon: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Most epsilon that may ever be spent on it, at delta, over all runs; 0 allows no private release."""
    delta: float = Field(default=1e-5, gt=0, lt=1)

    @field_validator("part")
    @classmethod
    def _counts(cls, value: Literal["all"] | int) -> Literal["all"] | int:
        if isinstance(value, int) and value < 0:
            raise ValueError("part counts from 0")
        return value


class Runs(Rule):
    """What a run must be like."""

    approval: Literal["each", "none"] = "each"
    """each: a person approves every run definition with ``umbel site review --approve``; none: the rules suffice."""
    repeat: bool = False
    """Whether a definition may be trained under any number of run ids; otherwise under one for each approval of it."""
    strategies: tuple[str, ...] = Field(default=(), strict=False)
    rank: int = Field(default=0, ge=0)
    """Largest LoRA rank."""
    steps: int = Field(default=0, ge=0)
    """Most local steps of one round."""
    rounds: int = Field(default=0, ge=0)
    """Most rounds of a run."""
    secure_aggregation: bool = Field(default=True, alias="secure-aggregation")
    """Whether updates leave only as masked vectors."""
    cohort: int = Field(default=3, ge=1)
    """Fewest sites among which this one's update is summed."""
    corrupt: float = Field(default=0.0, ge=0, lt=1)
    """Least share of colluding sites that secure aggregation must withstand."""
    privacy: tuple[Place, ...] = Field(default=("step",), strict=False)
    """Where noise may be added: step, update, secagg, coordinator; none allows runs without any."""
    evaluate: bool = False
    """Whether counts of this site's own held-out examples may leave."""


class Hours(Rule):
    """When training may happen; a round that is under way may be finished."""

    days: tuple[Day, ...] = Field(default=DAYS, strict=False)
    start: time = Field(default=time(0, 0), alias="from")
    end: time = Field(default=time(0, 0), alias="to")
    """Equal to ``from``: around the clock. Earlier than it: over midnight, counted to the day on which it began."""
    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (OSError, ValueError, KeyError):
            raise ValueError(f"time zone {value!r} is unknown, expected a name such as Europe/Vienna") from None
        return value

    def admit(self, now: datetime) -> bool:
        """Whether training may begin at ``now``, which must carry its zone."""
        here = now.astimezone(ZoneInfo(self.zone))
        today, yesterday = DAYS[here.weekday()], DAYS[here.weekday() - 1]
        moment = here.time()
        if self.start == self.end:
            return today in self.days
        if self.start < self.end:
            return today in self.days and self.start <= moment < self.end
        return (today in self.days and moment >= self.start) or (yesterday in self.days and moment < self.end)


class Limits(Rule):
    """What the agent may take of the machine."""

    memory: int = Field(default=0, ge=0)
    """Megabytes of memory at most; 0 sets no limit."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of training at most; 0 takes what the run says."""
    gpu: bool = False
    """Whether a GPU may be used."""
    gpu_memory: float = Field(default=1.0, gt=0, le=1, alias="gpu-memory")
    """Share of the GPU's memory."""
    message: int = Field(default=256, ge=1, le=4096)
    """Megabytes of one message at most."""
    log: int = Field(default=64, ge=1, le=4096)
    """Megabytes of one file of the log, after which the next begins."""


class SitePolicy(Rule):
    """All of site.toml. The defaults allow a dry run and nothing else."""

    name: str = Field(pattern=_NAME)
    """The site's name, as enrolled."""
    dry_run: bool = Field(default=True, alias="dry-run")
    """Whether couriers may ask if a run would be allowed."""
    keys: Keys = Keys()
    listen: Listen = Listen()
    coordinators: tuple[Coordinator, ...] = Field(default=(), strict=False, alias="coordinator")
    models: tuple[Model, ...] = Field(default=(), strict=False, alias="model")
    data: tuple[Data, ...] = Field(default=(), strict=False)
    runs: Runs = Runs()
    bundles: tuple[str, ...] = Field(default=(), strict=False)
    """Hashes of bundles that may carry code; ``umbel site review`` prints a bundle's."""
    hours: Hours = Hours()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _consistent(self) -> SitePolicy:
        for kind, names in (
            ("coordinator", [c.name for c in self.coordinators]),
            ("model", [m.name for m in self.models]),
            ("data", [d.name for d in self.data]),
            ("socket", [c.socket for c in self.coordinators if c.socket]),
            ("caller", [name for c in self.coordinators for name in c.callers]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{kind} {sorted(twice)[0]!r} stands twice")
        if bool(self.listen.address) != bool(self.listen.tls):
            raise ValueError("listen.address needs listen.tls, the folder of certificates, and the other way round")
        for value in self.bundles:
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise ValueError(f"bundle {value!r} is no hash of 64 hexadecimal digits")
        for data in self.data:
            if data.task == "folder" and not data.root:
                raise ValueError(f"data {data.name!r} has no root: name its folder")
        return self

    def coordinator_of(self, caller: str) -> str | None:
        """The coordinator whose couriers show a certificate of this name."""
        return next((c.name for c in self.coordinators if caller in c.callers), None)

    def model(self, name: str) -> Model | None:
        """The allowed model of this name."""
        return next((m for m in self.models if m.name == name), None)

    def dataset(self, name: str) -> Data | None:
        """The allowed data set of this name."""
        return next((d for d in self.data if d.name == name), None)


def read_policy(path: Path) -> SitePolicy:
    """Reads site.toml.

    Raises:
        SiteError: the file cannot be read, is not TOML, or says something that is not known; nothing is allowed then.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SiteError(f"{path} does not exist: make it with umbel site init {path.parent}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SiteError(f"{path} cannot be read ({error}): mend it, until then nothing is allowed.") from None
    try:
        policy = SitePolicy.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = "this key is not known" if first["type"] == "extra_forbidden" else first["msg"]
        message = message.removeprefix("Value error, ").rstrip(".")
        raise SiteError(
            f"{path} is not accepted ({key + ': ' if key else ''}{message}): mend it, until then nothing is allowed."
        ) from None
    _check_places(path, policy)
    return policy


def _check_places(path: Path, policy: SitePolicy) -> None:
    """One set of examples has one budget, by whatever names and links it is reached."""
    seen: dict[tuple[str, str], str] = {}
    for data in policy.data:
        lines = path.parent / Path(data.root).expanduser() / "train.jsonl"
        try:
            place = (data.task, os.path.realpath(lines) if data.root else "")
        except ValueError:
            raise SiteError(f"{path} is not accepted (data {data.name!r}: its root is no path): mend it.") from None
        first = seen.setdefault(place, data.name)
        if first != data.name:
            raise SiteError(
                f"{path} is not accepted (data {first!r} and {data.name!r} are the same examples, which would have two "
                "budgets): keep one of the two tables, until then nothing is allowed."
            )
