"""Target: one decoder of bytes that somebody else sends, with messages that it accepts."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.errors import UmbelError

MAX_SENTENCE = 4000
SCRATCH = Path(tempfile.mkdtemp(prefix="umbel-fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        name: in reports.
        read: takes the bytes; gives a value, or raises an UmbelError.
        seeds: messages that it accepts.
        ratio: bytes that it may set aside for each byte of input at most.
        base: and this many besides, whatever the input: the limit that it declares for itself.
    """

    name: str
    read: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]
    ratio: int = 64
    base: int = 1 << 20


def feed(target: Target, data: bytes) -> bool:
    """Gives ``data`` to the decoder; whether it was accepted. Any other exception than a sentence of ours passes on."""
    try:
        target.read(data)
    except UmbelError as error:
        text = str(error)
        assert text, target.name
        assert "\n" not in text, (target.name, text)
        assert len(text) <= MAX_SENTENCE, (target.name, len(text))
        return False
    return True


def as_file(read: Callable[[Path], Any], suffix: str = "") -> Callable[[bytes], Any]:
    """A decoder of files as one of bytes."""
    path = SCRATCH / f"input-{os.getpid()}-{len(list(SCRATCH.iterdir()))}{suffix}"
    path.touch()

    def reads(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return reads
