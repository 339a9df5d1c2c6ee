"""DP-FTRL: Gaussian noise correlated over steps, for sites that cannot sample."""

from privacy.ftrl.correlated import CorrelatedNoise
from privacy.ftrl.matrix import BandedMatrix, optimised

__all__ = ["BandedMatrix", "CorrelatedNoise", "optimised"]
