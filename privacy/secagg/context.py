"""RoundContext: the hash that every key, signature and ciphertext of a round is bound to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from privacy.secagg.parameters import SecAggParameters
from umbel.adapter import Vector
from umbel.errors import SecAggError

VERSION = b"umbel-secagg/1"
CONTEXT_BYTES = 32


@dataclass(frozen=True, slots=True)
class RoundContext:
    """Which sum this is. Each client computes it from what it received itself.

    A coordinator that shows different adapters or configurations to different clients gets different contexts:
    signatures do not verify, and masks would not cancel (Pasquini et al. 2022).

    Attributes:
        run: identifier of the run.
        round: number of the round.
        attempt: raised each time a round is repeated: a masked vector is sent once per context.
        broadcast: 32 bytes, :func:`broadcast_hash` of what the client was sent.
    """

    run: str
    round: int
    attempt: int
    broadcast: bytes

    def __post_init__(self) -> None:
        if len(self.broadcast) != 32 or self.round < 0 or self.attempt < 0:
            raise SecAggError("A round context needs a 32-byte broadcast hash and no negative round or attempt.")

    def digest(self, parameters: SecAggParameters) -> bytes:
        """ctx: 32 bytes over the version, this context and all parameters."""
        hasher = hashlib.sha256(VERSION)
        numbers = self.round.to_bytes(8, "big") + self.attempt.to_bytes(8, "big")
        for part in (self.run.encode(), numbers, self.broadcast, parameters.canonical()):
            hasher.update(len(part).to_bytes(8, "big") + part)
        return hasher.digest()


def broadcast_hash(adapter: Vector, config: bytes) -> bytes:
    """SHA-256 of a broadcast: the adapter's float32 values, little-endian, and the configuration's bytes."""
    hasher = hashlib.sha256(b"umbel-broadcast/1" + len(config).to_bytes(8, "big") + config)
    hasher.update(np.ascontiguousarray(adapter, dtype="<f4").data)
    return hasher.digest()
