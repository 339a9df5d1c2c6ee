"""Watch: whether somebody still waits for an answer, and whether the machine still has room for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from umbel.errors import SiteError


@dataclass(frozen=True, slots=True)
class Watch:
    """Of one call.

    Attributes:
        waiting: whether the caller is still there.
        deadline: ``time.monotonic`` after which nobody waits, or None.
        memory: megabytes that the process may hold; 0 for no limit.
    """

    waiting: Callable[[], bool]
    deadline: float | None = None
    memory: int = 0

    def check(self, paid: bool) -> None:
        """Raises SiteError when the work should end.

        Args:
            paid: a budget was spent on the work already. It is then finished although nobody waits, so that asking
                again costs nothing; the limit of memory holds all the same.
        """
        if self.memory and (held := psutil.Process().memory_info().rss >> 20) > self.memory:
            raise SiteError(
                f"The work holds {held} MB and this site allows {self.memory}: it was ended; lower train.microbatch, "
                "or let the site's owner raise limits.memory."
            )
        if paid:
            return
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise SiteError("The time for this call is over and its work was ended: raise federation.timeout.")
        if not self.waiting():
            raise SiteError("The caller went away and the work was ended: ask again.")
