"""Algebra on sums of products B A that never forms the [out, in] matrix.

A sum of K products of rank r is P Q with P = [B_1 .. B_K] and Q = [A_1; ..; A_K] of inner size R = K r. Two QR
factorisations leave a core of at most R x R, whose SVD is that of the sum (Golub and Van Loan, section 5.4).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import linalg

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Factors = Iterable[tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]
"""Pairs (b [out, k], a [k, in]); k may differ between pairs."""

_EPSILON = 1e-7
"""Singular values below this share of the largest are float32 rounding."""


def stack(factors: Factors) -> tuple[F64, F64]:
    """P [out, R] and Q [R, in] in float64 whose product is the sum of all b a."""
    pairs = list(factors)
    # Column-major, as LAPACK wants it: no second copy.
    p = np.concatenate([np.asarray(b, dtype=np.float64).T for b, _ in pairs], axis=0).T
    return p, np.concatenate([np.asarray(a, dtype=np.float64) for _, a in pairs], axis=0)


def truncated_svd(factors: Factors, rank: int) -> tuple[F64, F64, F64]:
    """U [out, k], S [k], Vt [k, in] of the sum of products, the best approximation of rank k = min(rank, ..).

    Float64; equal to the truncated SVD of the dense sum (Eckart-Young), with signs fixed so that the entry of
    largest magnitude of each right vector is positive. A sum of zero gives S = 0 and orthonormal U and Vt.
    """
    p, q = stack(factors)
    most = min(p.shape[0], p.shape[1], q.shape[1])
    rank = min(rank, most)
    if most >= 128 and 4 * rank <= most:
        u_full, s, v_full = _leading(p, q, rank)
    else:
        left, r_left = _tall(p)
        right, r_right = _tall(q.T)
        u, s, vt = linalg.svd(r_left @ r_right.T, full_matrices=False, check_finite=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
        u_full = u if left is None else _apply(left, u)
        v_full = vt.T if right is None else _apply(right, vt.T)
    peak = np.abs(v_full).argmax(axis=0)
    signs = np.where(v_full[peak, np.arange(v_full.shape[1])] < 0, -1.0, 1.0)
    return u_full * signs, s, (v_full * signs).T


def recompress(factors: Factors, cap: int = 0) -> tuple[F32, F32]:
    """(b [out, k], a [k, in]) in float32 whose product is the sum, k its numerical rank, at most ``cap`` unless 0."""
    p, q = stack(factors)
    most = min(p.shape[0], q.shape[1], p.shape[1])
    u, s, vt = truncated_svd([(p, q)], min(cap, most) if cap else most)
    k = int((s > _EPSILON * s[0]).sum()) if s.size and s[0] > 0 else 0
    root = np.sqrt(s[:k])
    return (u[:, :k] * root).astype(np.float32), (root[:, None] * vt[:k]).astype(np.float32)


def best_factors(factors: Factors, rank: int, scaling: float, old_a: npt.NDArray[np.floating]) -> tuple[F32, F32]:
    """(b [out, rank], a [rank, in]) whose scaled product is the best approximation of that rank of the sum.

    ``a`` has orthonormal rows in order of importance and ``b`` = U S / scaling, so that cutting both to their
    first k gives the best approximation of rank k. Where the sum has a lower rank, b's columns are zero and a's
    rows continue with directions of ``old_a`` [.., in], which a later gradient of b can use.
    """
    u, s, vt = truncated_svd(factors, rank)
    live = int((s > _EPSILON * s[0]).sum()) if s.size and s[0] > 0 else 0
    b = np.zeros((u.shape[0], rank), dtype=np.float32)
    b[:, :live] = u[:, :live] * s[:live] / scaling
    a = np.zeros((rank, vt.shape[1]), dtype=np.float32)
    filled = _orthonormal_rows([vt[:live], np.asarray(old_a, dtype=np.float64), vt[live:]], rank)
    a[: filled.shape[0]] = filled
    return b, a


def _orthonormal_rows(blocks: list[F64], rank: int) -> F64:
    """At most ``rank`` orthonormal rows: Gram-Schmidt, twice, over the rows in the order given."""
    basis: list[F64] = []
    for row in np.concatenate(blocks, axis=0):
        if len(basis) == rank:
            break
        rest = row.copy()
        for _ in range(2):
            for unit in basis:
                rest -= (unit @ rest) * unit
        norm = float(np.linalg.norm(rest))
        if norm > 1e-6 * max(float(np.linalg.norm(row)), 1e-30):
            basis.append(rest / norm)
    return np.stack(basis) if basis else np.zeros((0, blocks[0].shape[1]))


def frobenius(b: npt.NDArray[np.floating], a: npt.NDArray[np.floating]) -> float:
    """The Frobenius norm of b a, from the two k x k Gram matrices."""
    b64, a64 = b.astype(np.float64), a.astype(np.float64)
    return float(np.sqrt(max(float(((b64.T @ b64) * (a64 @ a64.T)).sum()), 0.0)))


def orthonormal(rows: int, columns: int, seed: Iterable[int]) -> F64:
    """A [rows, columns] matrix with orthonormal columns (rows >= columns), a function of the seed alone."""
    q, r = np.linalg.qr(np.random.default_rng(list(seed)).standard_normal((rows, columns)))
    return np.asarray(q * np.where(np.diag(r) < 0, -1.0, 1.0), dtype=np.float64)


_Reflectors = tuple[F64, F64]


def _tall(x: F64) -> tuple[_Reflectors | None, F64]:
    """Householder QR without forming Q; a wide matrix is its own core."""
    if x.shape[0] <= x.shape[1]:
        return None, x
    (reflectors, tau), r = linalg.qr(x, mode="raw", check_finite=False)
    return (reflectors, tau), np.triu(r[: x.shape[1]])


def _apply(q: _Reflectors, x: F64) -> F64:
    """Q x for the reflectors of :func:`_tall`; x is [columns of Q, k] with few columns."""
    reflectors, tau = q
    padded = np.zeros((reflectors.shape[0], x.shape[1]), order="F")
    padded[: x.shape[0]] = x
    work = max(64 * x.shape[1], 1)
    result, _, _ = linalg.lapack.dormqr("L", "N", reflectors, tau, padded, work, overwrite_c=1)
    return np.asarray(result)


def _leading(p: F64, q: F64, rank: int) -> tuple[F64, F64, F64]:
    """U, S, V of P Q for a rank far below R.

    With P^T P = L L^T the squared singular values are the eigenvalues of L^T (Q Q^T) L: only R x R work. The
    leading directions found so are refined inside themselves against P and Q (Rayleigh-Ritz), which leaves an
    error of about 1e-8 of the largest singular value, below float32. The ridge makes a singular P factorisable.
    """
    gram = p.T @ p
    n = gram.shape[0]
    gram[np.diag_indices(n)] += 1e-14 * max(float(np.trace(gram)) / n, 1e-300)
    lower = linalg.cholesky(gram, lower=True, check_finite=False)
    core = lower.T @ (q @ q.T) @ lower
    _, leading = linalg.eigh(core, subset_by_index=[n - rank, n - 1], check_finite=False)
    v, _ = linalg.qr(q.T @ (lower @ leading), mode="economic", check_finite=False)
    u, s, wt = linalg.svd(p @ (q @ v), full_matrices=False, check_finite=False)
    return u, s, v @ wt.T
