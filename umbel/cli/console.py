"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(error: BaseException | str) -> None:
    """Prints one sentence on stderr, as it is: no markup, no wrapping in the middle of a path."""
    err.print(str(error), markup=False, soft_wrap=True, style="red" if err.is_terminal else None)
