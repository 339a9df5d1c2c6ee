"""Structured logs: one JSON object a line, with the run and the round that the line is about.

``UMBEL_LOG=json`` switches them on; otherwise logs look as Flower makes them. The ids travel in context variables, so
that a library's warning in the middle of a round carries them too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from umbel.errors import ConfigError, RunError

SWITCH = "UMBEL_LOG"
_LOGGERS = ("flwr", "umbel")  # umbel's own in a run lie under Flower's
_run: ContextVar[str] = ContextVar("umbel_run", default="")
_round: ContextVar[int] = ContextVar("umbel_round", default=0)


@contextlib.contextmanager
def about(*, run: str | None = None, round_number: int | None = None) -> Iterator[None]:
    """Lines logged inside say which run and round they are about; what is not given stays as it was."""
    run_token = None if run is None else _run.set(run)
    round_token = None if round_number is None else _round.set(round_number)
    try:
        yield
    finally:
        if round_token is not None:
            _round.reset(round_token)
        if run_token is not None:
            _run.reset(run_token)


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}`` and, where known, ``run``, ``round``, ``error``; one line each.

    Line breaks inside a message are escaped by JSON, so that nothing logged can forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line, without its newline."""
        body: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if _run.get():
            body["run"] = _run.get()
        if _round.get():
            body["round"] = _round.get()
        if record.exc_info and record.exc_info[1] is not None:
            body["error"] = "".join(self.formatException(record.exc_info))
        return json.dumps(body, ensure_ascii=False)


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """Where logs are JSON, also appends them to ``path``: Flower throws away what the process of a run prints.

    Raises:
        RunError: the file cannot be opened.
    """
    if os.environ.get(SWITCH) != "json":
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}): make room, or unset {SWITCH}.") from None
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def structured(stream: TextIO | None = None, *loggers: str) -> bool:
    """Makes loggers write JSON lines where ``UMBEL_LOG`` is ``json``; says whether it is. May be called twice.

    Args:
        stream: where to; standard error by default.
        loggers: names; by default Flower's and umbel's.

    Raises:
        ConfigError: ``UMBEL_LOG`` is neither ``json`` nor ``text`` nor unset.
    """
    wanted = os.environ.get(SWITCH, "text") or "text"
    if wanted not in ("json", "text"):
        raise ConfigError(f"{SWITCH} is {wanted!r}: set it to json or text.")
    if wanted == "text":
        return False
    for name in loggers or _LOGGERS:
        logger = logging.getLogger(name)
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(JsonLines())
        logger.handlers[:] = [handler]
        logger.propagate = False
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    return True
