"""Which part of the population is asked in a round."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from umbel.config import FederationConfig

T = TypeVar("T")


def draw_cohort(
    config: FederationConfig, population: Sequence[T], round_number: int, seed: int, *, private: bool = False
) -> list[T]:
    """The round's cohort, in the population's order.

    ``all`` takes everybody; ``fixed`` takes ``cohort-size`` without replacement; ``poisson`` takes each with
    probability cohort-size / clients, so a cohort may be small or empty.

    Args:
        config: how to draw.
        population: everybody who can be asked.
        round_number: 1-based.
        seed: fixes the cohort, so that a resumed run draws the same one.
        private: draw from the operating system's CSPRNG instead, because a privacy guarantee counts on the cohort
            being unknown (amplification by sampling).
    """
    if config.cohort == "all":
        return list(population)
    entropy = secrets.randbits(128) if private else _entropy(seed, round_number)
    generator = np.random.Generator(np.random.PCG64(entropy))
    if config.cohort == "fixed":
        size = min(config.cohort_size, len(population))
        chosen = set(generator.choice(len(population), size=size, replace=False).tolist())
    else:
        chosen = set(np.flatnonzero(generator.random(len(population)) < config.cohort_size / config.clients).tolist())
    return [member for index, member in enumerate(population) if index in chosen]


def _entropy(seed: int, round_number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"cohort {seed} {round_number}".encode()).digest()[:16], "big")
