"""TurnedAway: calls that were refused before they were a piece of work, in the log, and never so many as to fill it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from client.agent.audit_log import AuditLog
from umbel.errors import SiteError, UmbelError

logger = logging.getLogger("umbel.agent")
_LONGEST = 300


class TurnedAway:
    """One ``refused`` line a call, up to ``most`` in a span of time; then one line that counts the others.

    Args:
        log: of the site.
        most: lines of one span.
        seconds: of a span.
        clock: for tests.
    """

    def __init__(
        self, log: AuditLog, *, most: int = 10, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._most, self._seconds, self._clock = log, most, seconds, clock
        self._lock = threading.Lock()
        self._since = -seconds
        self._written = self._more = 0
        self._timer: threading.Timer | None = None

    def note(self, whose: dict[str, Any], error: UmbelError) -> None:
        """Notes one refusal, or counts it. A log that cannot be written stops nothing here: nothing leaves."""
        with self._lock:
            now = self._clock()
            if now - self._since >= self._seconds:
                self._count()
                self._since, self._written = now, 0
            if self._written < self._most:
                self._written += 1
                self._append({**whose, "error": type(error).__name__, "reason": str(error)[:_LONGEST]})
                return
            self._more += 1
            if self._timer is None:
                self._timer = threading.Timer(max(0.0, self._since + self._seconds - now), self.close)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Writes the line that counts what got no line of its own, if there is such."""
        with self._lock:
            self._count()

    def _count(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._more:
            more, self._more = self._more, 0
            self._append({"action": "several", "count": more, "reason": "More calls than get a line of their own."})

    def _append(self, facts: dict[str, Any]) -> None:
        try:
            self._log.append("refused", **facts)
        except SiteError as error:
            logger.error("A refusal was not noted: %s", error)
