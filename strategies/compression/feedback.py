"""Error feedback: what compression lost is added to the next upload (Seide et al. 2014; Karimireddy et al. 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import Arrays
from umbel.adapter import Vector

_ERROR = "compression.error"


class ErrorFeedback:
    """One client's memory of lost values; it stays at the site.

    The order is: ``add``, then clip, then compress, then ``update`` with the clipped vector and what its compression
    stands for. The memory is added before clipping, so the clip bounds what leaves; what the clip cuts off is lost
    on purpose, for otherwise a large update would leave in instalments that no round's bound counts.

    Args:
        kept: what :meth:`keep` gave last time; empty at first. A memory of another length is dropped.
    """

    def __init__(self, kept: Arrays | None = None) -> None:
        self._error = (kept or {}).get(_ERROR)

    def add(self, vector: Vector) -> Vector:
        """The vector plus the memory, a new one."""
        if self._error is None or self._error.shape != vector.shape:
            return vector.copy()
        return np.asarray(vector + self._error, dtype=np.float32)

    def update(self, sent: Vector, arrived: Vector) -> None:
        """Remembers ``sent - arrived``."""
        self._error = np.asarray(sent - arrived, dtype=np.float32)

    def lose(self, more: Vector) -> None:
        """Adds to the memory what a later step lost of the same upload."""
        self._error = more.copy() if self._error is None else np.asarray(self._error + more, dtype=np.float32)

    def keep(self) -> dict[str, npt.NDArray[np.float32]]:
        """The memory, for the site's state."""
        return {} if self._error is None else {_ERROR: self._error}
