"""Which examples each local step sees, without differential privacy.

Under a privacy plan the plan's own sampler draws the batches instead (``privacy.sampling``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from umbel.config import TrainConfig
from umbel.errors import DataError


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from SHA-256 over the parts' text: equal parts give equal seeds in any process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_for(config: TrainConfig, examples: int, amount: int = 0) -> int:
    """Local steps of one round.

    Args:
        config: ``unit`` and ``amount`` say how much; an epoch is ceil(examples / batch-size) steps.
        examples: how many the client holds.
        amount: overrides ``config.amount`` when positive.
    """
    count = amount or config.amount
    return count if config.unit == "steps" else count * -(-examples // config.batch_size)


def shuffled_batches(examples: int, batch_size: int, steps: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Index batches from one shuffled pass after the other.

    A batch never spans two passes; with fewer examples than ``batch_size`` every batch is a whole pass.

    Raises:
        DataError: there are no examples.
    """
    if examples < 1:
        raise DataError("A client without examples cannot train: lower federation.clients or task.minimum.")
    generator = np.random.Generator(np.random.PCG64(seed))
    done = 0
    while done < steps:
        order = generator.permutation(examples)
        for start in range(0, examples, batch_size):
            if done == steps:
                return
            batch = order[start : start + batch_size]
            if len(batch) < batch_size and start > 0:
                break  # a short tail would weigh its examples more than the others
            yield batch
            done += 1
