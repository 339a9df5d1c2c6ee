"""Noise and randomness from the operating system's CSPRNG, continuous and discrete."""

from privacy.noise.discrete import discrete_gaussian, skellam
from privacy.noise.gaussian import add_gaussian_, gaussian_, normal
from privacy.noise.source import SYSTEM, FixedNoise, NoiseSource, SystemNoise

__all__ = [
    "SYSTEM",
    "FixedNoise",
    "NoiseSource",
    "SystemNoise",
    "add_gaussian_",
    "discrete_gaussian",
    "gaussian_",
    "normal",
    "skellam",
]
