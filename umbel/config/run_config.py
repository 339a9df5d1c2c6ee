"""RunConfig: all options of a run, validated as a whole at both ends."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from umbel.config.federation import EvaluateConfig, FederationConfig, RunSection
from umbel.config.model import LoraConfig, ModelConfig
from umbel.config.privacy import PrivacyConfig
from umbel.config.secagg import SecAggConfig
from umbel.config.section import Section
from umbel.config.strategy import StrategyConfig
from umbel.config.task import TaskConfig
from umbel.config.train import TrainConfig
from umbel.config.tuning import impossible
from umbel.errors import ConfigError

Scalar = bool | int | float | str


class RunConfig(Section):
    """Every option of a run; the defaults here are those of pyproject.toml (a test compares them)."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    strategy: StrategyConfig = Field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    secagg: SecAggConfig = Field(default_factory=SecAggConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        federation = self.federation
        if federation.cohort != "all" and federation.cohort_size > federation.clients:
            raise ValueError(
                f"federation.cohort-size {federation.cohort_size} is larger than the population of "
                f"{federation.clients}: lower it or raise federation.clients"
            )
        expected = federation.clients if federation.cohort == "all" else federation.cohort_size
        if federation.minimum > expected:
            raise ValueError(
                f"federation.minimum {federation.minimum} is larger than the cohort of {expected}: "
                "no round could ever count, lower it"
            )
        ranks = self.strategy.client_ranks
        if ranks != "top" and self.strategy.ranks == "same":
            raise ValueError(
                f"strategy.client-ranks {ranks} gives clients different ranks, but strategy.ranks is same: set it to "
                "mixed"
            )
        if ranks != "top" and max(map(int, ranks.split(","))) > self.lora.rank:
            raise ValueError(
                f"strategy.client-ranks {ranks} goes above lora.rank {self.lora.rank}, the server's: raise lora.rank "
                "or lower them"
            )
        for reason in impossible(self):
            raise ValueError(reason)
        return self

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Reads dotted keys ("train.batch-size"), as Flower hands them over.

        Raises:
            ConfigError: an unknown key, a wrong type or an impossible combination, in one sentence.
        """
        nested: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            group, _, name = key.partition(".")
            if group not in cls.model_fields or not name:
                raise ConfigError(_unknown(key))
            nested.setdefault(group, {})[name] = value
        return cls.from_nested(nested)

    @classmethod
    def from_nested(cls, nested: Mapping[str, Any]) -> RunConfig:
        """Reads one table a group, as a TOML file holds them.

        Raises:
            ConfigError: as :meth:`from_flat`.
        """
        try:
            return cls.model_validate(_widen(nested))
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None

    def to_nested(self) -> dict[str, dict[str, Scalar]]:
        """One table a group, with the names that the files use."""
        dumped: dict[str, dict[str, Scalar]] = self.model_dump(by_alias=True)
        return dumped

    def to_flat(self) -> dict[str, Scalar]:
        """Dotted keys; ``from_flat`` of the result equals this config."""
        return {f"{group}.{key}": value for group, table in self.to_nested().items() for key, value in table.items()}


def _widen(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Lets an integer stand where a float is expected (``epsilon=8``), and nothing else."""
    result: dict[str, Any] = {}
    for group, table in nested.items():
        field = RunConfig.model_fields.get(group)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, Section) and isinstance(table, Mapping)):
            result[group] = table
            continue
        floats = {f.alias or n for n, f in section.model_fields.items() if f.annotation is float}
        result[group] = {
            key: float(value) if key in floats and type(value) is int else value for key, value in table.items()
        }
    return result


def _unknown(key: str) -> str:
    known = sorted(RunConfig().to_flat())
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "all options stand in pyproject.toml."
    return f"Option {key!r} is unknown: {hint}"


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(key)
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message.rstrip(".") + "."
    return f"Option {key!r} has the value {first['input']!r}: {message[0].lower()}{message[1:]}; change it."
