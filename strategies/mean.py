"""The weighted mean of visible uploads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.base import Upload
from umbel.adapter import Vector
from umbel.errors import StrategyError


def weighted_mean(uploads: Sequence[Upload]) -> Vector:
    """Sum of weight times vector over the sum of weights, accumulated in float64 and rounded once.

    Raises:
        StrategyError: no uploads, lengths that differ, or weights that do not sum to a positive number.
    """
    if not uploads:
        raise StrategyError("There are no uploads to average: at least one client must answer.")
    if any(u.vector.shape != uploads[0].vector.shape for u in uploads):
        raise StrategyError("Uploads differ in length: this method needs the same LoRA rank at every client.")
    total = float(sum(u.weight for u in uploads))
    if not (np.isfinite(total) and total > 0 and all(u.weight >= 0 for u in uploads)):
        raise StrategyError("The clients' weights do not sum to a positive number: every client needs an example.")
    accumulator = np.zeros(uploads[0].vector.shape, dtype=np.float64)
    for upload in uploads:
        accumulator += upload.weight * upload.vector.astype(np.float64)
    return np.asarray(accumulator / total, dtype=np.float32)
