"""Tracker: ``metrics.jsonl``, one JSON object a line, appended and synced; and its reader.

Kinds of line, in the order in which a run writes them: ``start``, one ``round`` a round, perhaps ``central``,
``end``. Readers keep keys that they do not know, so that newer writers do not break them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from umbel.errors import RunError
from umbel.files import write_atomic

CLIENTS = "clients"
"""Among evaluation sets: the clients' own held-out data, measured at the clients."""


class Line(BaseModel):
    """A line of metrics.jsonl; unknown keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Figures(Line):
    """What an evaluation measured on one set.

    ``by_type`` maps a question type to [correct, count].
    """

    accuracy: float | None = None
    loss: float | None = None
    count: int = 0
    by_type: dict[str, tuple[int, int]] = Field(default_factory=dict)


class Base(Line):
    """The frozen base."""

    name: str = ""
    hash: str = ""
    quantization: str = ""
    parameters: int = 0
    bytes: int = 0


class Adapter(Line):
    """The trained part: ``size`` float32 values."""

    size: int = 0
    spec_hash: str = ""


class Privacy(Line):
    """What has been spent; ``statement`` names unit, relation and sampling assumption in words."""

    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    relation: str = ""
    sampler: str = ""
    statement: str = ""


class Stage(Line):
    """One protocol stage: ``alive`` clients that passed it, seconds, bytes."""

    alive: int = 0
    seconds: float = 0.0
    bytes: int = 0


class SecAgg(Line):
    """Secure aggregation of a run (start line) or a round (with its stages)."""

    threshold: int | None = None
    mode: str = ""
    stages: dict[str, Stage] = Field(default_factory=dict)


class StartLine(Line):
    """Written once, before round 1."""

    kind: Literal["start"] = "start"
    time: float = 0.0
    umbel: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    base: Base = Field(default_factory=Base)
    adapter: Adapter = Field(default_factory=Adapter)
    task: dict[str, Any] = Field(default_factory=dict)
    clients: int = 0
    privacy: Privacy | None = None
    secagg: SecAgg | None = None
    baseline: dict[str, Figures] = Field(default_factory=dict)


class RoundLine(Line):
    """One finished round."""

    kind: Literal["round"] = "round"
    round: int = Field(ge=1)
    cohort: int = 0
    survivors: int = 0
    rejected: int = 0
    missing: int = 0
    train_loss: float | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    evaluation: dict[str, Figures] | None = None
    privacy: Privacy | None = None
    secagg: SecAgg | None = None


class CentralLine(Line):
    """The comparison: the same LoRA trained centrally on the pooled data for the same number of examples."""

    kind: Literal["central"] = "central"
    evaluation: dict[str, Figures] = Field(default_factory=dict)
    seconds: float = 0.0
    examples: int = 0


class EndLine(Line):
    """Written once, after the adapter; a run with this line is finished."""

    kind: Literal["end"] = "end"
    rounds: int = 0
    seconds: float = 0.0
    evaluation: dict[str, Figures] = Field(default_factory=dict)


@dataclass(frozen=True)
class Metrics:
    """All lines of one run."""

    start: StartLine | None = None
    rounds: list[RoundLine] = field(default_factory=list)
    central: CentralLine | None = None
    end: EndLine | None = None

    @property
    def final(self) -> dict[str, Figures]:
        """The last evaluation there is: of the end, else of the newest evaluated round, else empty."""
        if self.end is not None and self.end.evaluation:
            return self.end.evaluation
        return next((line.evaluation for line in reversed(self.rounds) if line.evaluation), {})

    @property
    def headline(self) -> str:
        """The main evaluation set: what the task names as ``headline``, else the first one evaluated, else ""."""
        named = str(self.start.task.get("headline", "")) if self.start else ""
        sets = (self.start.baseline if self.start else None) or self.final
        return named if named in sets or not sets else next(iter(sets))


def read_metrics(path: Path) -> Metrics:
    """Reads ``metrics.jsonl``. A torn last line (no newline: the writer was killed) is left out.

    An empty file gives empty Metrics. Lines of a kind that is not known are skipped.

    Raises:
        RunError: the file cannot be read, or a line other than a torn last one is broken.
    """
    start: StartLine | None = None
    central: CentralLine | None = None
    end: EndLine | None = None
    rounds: dict[int, RoundLine] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            body = json.loads(line)
            kind = body["kind"]
            if kind == "start":
                start = StartLine.model_validate(body)
            elif kind == "round":
                row = RoundLine.model_validate(body)
                rounds[row.round] = row  # a round written twice counts once, as last written
            elif kind == "central":
                central = CentralLine.model_validate(body)
            elif kind == "end":
                end = EndLine.model_validate(body)
        except (ValueError, KeyError, TypeError, ValidationError):
            raise RunError(
                f"Line {number} of {path} is not a metrics line: restore the file or delete that line."
            ) from None
    return Metrics(start, [rounds[number] for number in sorted(rounds)], central, end)


class Tracker:
    """Appends lines to a run's ``metrics.jsonl``; each is flushed and synced before ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, **values: Any) -> None:
        """Writes the start line, unless there is one (a resumed run keeps the first). ``time`` is added."""
        if self.path.is_file() and read_metrics(self.path).start is not None:
            return
        self.write({"kind": "start", "time": time.time(), **values})

    def round(self, **values: Any) -> None:
        """Writes the line of one round; ``round`` (1-based) is required."""
        self.write({"kind": "round", **values})

    def central(self, **values: Any) -> None:
        """Writes the line of the central comparison."""
        self.write({"kind": "central", **values})

    def end(self, **values: Any) -> None:
        """Writes the line that makes the run finished."""
        self.write({"kind": "end", **values})

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line. Numbers that are not finite become null, for JSON has no NaN.

        Raises:
            RunError: the line has no known kind or a wrong type, or the file cannot be written. A line that was
                written in part is cut off again where that is possible, and read as torn where it is not.
        """
        body = _plain(line)
        model = _KINDS.get(body.get("kind", ""))
        if model is None:
            raise RunError(f"A metrics line has the kind {body.get('kind')!r}: use one of {', '.join(_KINDS)}.")
        try:
            model.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RunError(f"A {body['kind']} line has a wrong {where!r}: {first['msg'].lower()}.") from None
        self._append((json.dumps(body, separators=(",", ":"), ensure_ascii=False) + "\n").encode())

    def _append(self, data: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                size = stream.tell()
                try:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    os.ftruncate(stream.fileno(), size)
                    raise
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}): free some space and run again to resume."
            ) from None

    def resume(self, round_number: int) -> None:
        """Drops what was written after round ``round_number`` was checkpointed, by an atomic rewrite.

        Lines of later rounds, the central comparison, the end, and a torn last line go; 0 keeps only the start.
        """
        if not self.path.is_file():
            return
        read_metrics(self.path)  # refuses a damaged file before anything is rewritten
        kept = []
        for line in _whole_lines(self.path):
            body = json.loads(line)
            if body["kind"] == "start" or (body["kind"] == "round" and body["round"] <= round_number):
                kept.append(line + "\n")
        write_atomic(self.path, "".join(kept).encode())


_KINDS: dict[str, type[Line]] = {"start": StartLine, "round": RoundLine, "central": CentralLine, "end": EndLine}


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline; what follows the last newline is torn and left out."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): give the folder of a run.") from None
    return [line for line in text.split("\n")[:-1] if line.strip()]


def _plain(value: Any) -> Any:
    """Turns models, mappings, tuples and numpy scalars into what JSON has."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
