"""Long work that a person or a service manager may stop: it says how to go on, or leaves nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umbel.cli.console import say


@contextmanager
def stoppable(folder: Path, resume: str) -> Iterator[None]:
    """Within it SIGTERM acts like Ctrl-C. A stopped run that had begun is kept, one that had not is removed.

    Args:
        folder: of the run.
        resume: the command that goes on with it, shown when it can.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    from coordinator.run_folder import discard_unused

    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not discard_unused(folder):
            say(f"Stopped: resume it with '{resume}'.")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
