"""Coverage-guided fuzzing of one decoder with atheris (libFuzzer); ``python -m tests.fuzz`` runs it for each.

    python -m tests.fuzz.harness TARGET CORPUS [libFuzzer options]

A crash leaves the input in ``crash-*``, which ``python -m tests.fuzz.harness TARGET FILE`` reads again.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import atheris

OURS = ["umbel", "mllm.tasks", "privacy", "strategies", "client", "coordinator", "deploy"]
GROWTH = 256 << 20
"""Bytes that one input may add to the memory of the process: several times any limit that a decoder declares."""


def main(arguments: list[str]) -> None:
    """Fuzzes until libFuzzer's options end it."""
    name, corpus, *options = arguments
    with atheris.instrument_imports(include=OURS):
        from tests.fuzz.target import feed
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    place = Path(corpus)
    if place.is_dir():
        for number, seed in enumerate(target.seeds):
            (place / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        feed(target, data)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10  # Linux counts in KiB
        if grown > GROWTH:
            raise MemoryError(f"{name} took {grown} bytes for an input of {len(data)}")

    atheris.Setup([sys.argv[0], *options, corpus], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
