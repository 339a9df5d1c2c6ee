"""Interruption: a training that nobody waits for any more ends at its next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_watch: ContextVar[Callable[[bool], None] | None] = ContextVar("umbel_interrupt", default=None)
_paid: ContextVar[bool] = ContextVar("umbel_paid", default=False)


@contextmanager
def watched(ask: Callable[[bool], None]) -> Iterator[None]:
    """Within it, every local step of this thread first calls ``ask``, which raises to end the training.

    Args:
        ask: is told whether a budget was already spent on the work.
    """
    token = _watch.set(ask)
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def paid_for() -> Iterator[None]:
    """Within it, a budget has been spent on the work."""
    token = _paid.set(True)
    try:
        yield
    finally:
        _paid.reset(token)


def check() -> None:
    """Raises what the watcher raises; does nothing where nobody watches."""
    ask = _watch.get()
    if ask is not None:
        ask(_paid.get())
