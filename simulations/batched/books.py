"""Per-example clipping of a joint batch: one row an example, one sum a lane (Abadi et al. 2016, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from privacy.clipping.engine import clip_factors
from simulations.batched.owners import Owners


def clipped_sums(books: Tensor, sizes: Sequence[int], clipping_norm: float, into: Tensor) -> None:
    """Adds each lane's sum of clipped per-example gradients to its row.

    The guarantee is that of :mod:`privacy.clipping.engine`, lane by lane: one example moves its own lane's sum by at
    most ``clipping_norm`` and no other's; an example with a value that is not finite contributes nothing.

    Args:
        books: float32 [n, d], gradients of the examples, lane by lane; overwritten where not finite.
        sizes: examples of each lane.
        clipping_norm: C.
        into: [lanes, d].
    """
    norms = torch.linalg.vector_norm(books, dim=1, dtype=torch.float64)
    factors = clip_factors(norms, clipping_norm).to(books.dtype)
    lost = factors == 0
    if bool(lost.any()):
        books[lost] = 0  # 0 times NaN is NaN
    for first, last, start, stop in Owners(tuple(sizes)).pieces:
        n = last - first
        part = torch.bmm(factors[start:stop].view(n, 1, -1), books[start:stop].view(n, -1, books.shape[1]))
        into[first:last] += part[:, 0]
