"""What one check of preflight found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from umbel.errors import UmbelError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of preflight.

    Attributes:
        check: one word or two: what was looked at.
        good: whether it may stay as it is.
        said: what was found, and where it is not good also how to mend it.
    """

    check: str
    good: bool
    said: str


Check = Callable[[], str]
"""Returns what was found; raises an UmbelError that says what is wrong and how to mend it."""


def run_checks(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Runs all checks, each to its end: a failing one hides no other."""
    for name, check in checks:
        try:
            yield Finding(name, True, check())
        except UmbelError as error:
            yield Finding(name, False, str(error))
