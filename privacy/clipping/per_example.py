"""Per-example gradients of a linear map from its input and the gradient of its output.

For y = x W^T + b the gradient of example i is the sum over its rows t of g_t x_t^T (weight) and g_t (bias):
the "book-keeping" of Bu et al. 2023 (arXiv 2210.00038, section 3), with rows summed to their example *before* the norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from umbel.rows import Rows


def flatten_rows(x: Tensor, rows: Rows) -> tuple[Tensor, int]:
    """Brings [rows, ..., f] to [rows * inner, f] in float32, rows of an example together.

    Returns:
        The matrix and ``inner``, the number of matrix rows of each row of ``rows``.
    """
    features = x.shape[-1]
    flat = x.reshape(len(rows), -1, features)
    if rows.order is not None:
        flat = flat[rows.order.to(flat.device)]
    return flat.reshape(-1, features).float(), flat.shape[1]


def slices(rows: Rows, inner: int) -> Iterator[tuple[int, slice]]:
    """Example index and slice into the matrix of :func:`flatten_rows`, for every example that owns a row."""
    start = 0
    for example, count in enumerate(rows.counts):
        stop = start + count * inner
        if count:
            yield example, slice(start, stop)
        start = stop


def outer_sums(g: Tensor, x: Tensor, rows: Rows, inner: int) -> Tensor:
    """Weight gradients [n, out, in] of matrices g [rows, out] and x [rows, in]; zero without rows."""
    n = rows.size
    if rows.even:
        return torch.bmm(g.view(n, -1, g.shape[1]).transpose(1, 2), x.view(n, -1, x.shape[1]))
    result = g.new_zeros(n, g.shape[1], x.shape[1])
    for example, part in slices(rows, inner):
        torch.mm(g[part].t(), x[part], out=result[example])
    return result


def plain_sums(g: Tensor, rows: Rows, inner: int) -> Tensor:
    """Sums of rows [n, f] of a matrix [rows, f]; zero without rows."""
    n = rows.size
    if rows.even:
        return g.view(n, -1, g.shape[1]).sum(dim=1)
    result = g.new_zeros(n, g.shape[1])
    for example, part in slices(rows, inner):
        result[example] = g[part].sum(dim=0)
    return result


def squared_norm(g: Tensor, x: Tensor) -> Tensor:
    """Squared Frobenius norm of g^T x as a float64 scalar, for g [t, out] and x [t, in].

    The Gram form sum_ij (g_i.g_j)(x_i.x_j) (Goodfellow 2015) when that is several times cheaper; in float64, because
    its terms may cancel. Else the product itself.
    """
    t, out, width = g.shape[0], g.shape[1], x.shape[1]
    if 4 * t * (out + width) < out * width:
        wide_g, wide_x = g.double(), x.double()
        return ((wide_g @ wide_g.t()) * (wide_x @ wide_x.t())).sum().clamp(min=0)
    square: Tensor = torch.linalg.vector_norm(g.t() @ x).double().square()
    return square
