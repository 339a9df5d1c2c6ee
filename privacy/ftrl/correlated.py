"""The noise generator of the banded matrix mechanism: C^-1 Z, one step at a time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.ftrl.matrix import BandedMatrix
from privacy.noise.gaussian import grid_step, normal, on_grid
from privacy.noise.source import SYSTEM, NoiseSource
from umbel.errors import PrivacyError

_TILE = 1 << 16


class CorrelatedNoise:
    """Adds step after step of correlated noise to vectors of one size.

    Guarantee: all steps together are one Gaussian mechanism with noise multiplier ``std`` over (clipping norm x
    ``matrix.sensitivity``), adaptively (Denisov et al. 2022, theorem 2.1), provided that units take part
    at least ``matrix.separation`` steps apart and that each contribution is clipped. A step cannot be repeated.

    The last ``bands - 1`` noise vectors are kept, in float64 (8 bytes a value and band: rounding them would
    make the noise differ from C^-1 Z). With them past noise can be removed, so they are as secret as the data:
    keep :meth:`state` at the site only, and write it before the noised vector leaves.
    """

    def __init__(self, matrix: BandedMatrix, size: int, std: float, source: NoiseSource = SYSTEM) -> None:
        if not (math.isfinite(std) and std > 0):
            raise PrivacyError(f"A noise standard deviation is {std}, expected above 0: use plan.noise_std().")
        self.matrix, self.size, self.std, self._source = matrix, size, std, source
        self.step = 0
        self._past = np.zeros((matrix.bands - 1, size), dtype=np.float64)

    def add_(self, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Adds the next step's noise in place, on the grid of :func:`privacy.noise.add_gaussian_`; returns it.

        Args:
            vector: float32 [size], finite.

        Raises:
            PrivacyError: wrong shape or dtype, a value that is not finite, or all planned steps have been made.
        """
        if vector.shape != (self.size,) or vector.dtype != np.float32 or not bool(np.isfinite(vector).all()):
            raise PrivacyError(
                f"A vector to be noised has shape {vector.shape} and dtype {vector.dtype}: expected ({self.size},), "
                "float32 and finite values; clip it with a clipper of umbel."
            )
        if self.step >= self.matrix.steps:
            raise PrivacyError(
                f"All {self.matrix.steps} planned steps of correlated noise have been made: "
                "plan a new run with its own budget."
            )
        memory = len(self._past)
        grid = grid_step(self.std)
        for start in range(0, self.size, _TILE):
            part = slice(start, min(start + _TILE, self.size))
            noise = normal(part.stop - part.start, self._source) * self.std
            for j in range(1, min(memory, self.step) + 1):
                noise -= self.matrix.coefficients[j] * self._past[(self.step - j) % memory, part]
            if memory:
                self._past[self.step % memory, part] = noise
            vector[part] = on_grid(noise + vector[part], grid)
        self.step += 1
        return vector

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """What a later process needs: ``past`` [bands - 1, size] and ``step`` [1], float64."""
        return {"past": self._past.copy(), "step": np.array([self.step], dtype=np.float64)}

    def restore(self, state: dict[str, npt.NDArray[np.float64]]) -> None:
        """Continues from :meth:`state`.

        Raises:
            PrivacyError: the state does not fit the matrix or the size.
        """
        past, step = state.get("past"), state.get("step")
        if past is None or step is None or past.shape != self._past.shape or step.shape != (1,):
            raise PrivacyError(
                "The state of the correlated noise does not fit the plan: expected as many past vectors as bands "
                "minus one, of the adapter's size; continue only the run that wrote it."
            )
        self._past, self.step = past.astype(np.float64), int(step[0])
