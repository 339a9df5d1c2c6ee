"""Shamir's secret sharing of 32-byte secrets, many at once.

A secret is cut into sixteen 16-bit limbs, each shared by its own polynomial over GF(65537) (Shamir 1979).
The field is small enough that a whole batch of shares is one exact float64 matrix product: each term is
below 2^32 and at most 2^14 terms are summed, so every partial sum stays below 2^53.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from umbel.errors import SecAggError

PRIME = 65537
SECRET_BYTES = 32
LIMBS = SECRET_BYTES // 2
SHARE_BYTES = SECRET_BYTES + LIMBS // 8
"""Low 16 bits of each limb, then one bit each for the value 65536."""
MAX_POINTS = 1 << 14
_SMALL_PRODUCT = 1 << 18

Matrix = npt.NDArray[np.float64]


def split(secrets_in: Sequence[bytes], points: Sequence[int], threshold: int) -> list[list[bytes]]:
    """Shares of each secret for each point: ``result[i][j]`` belongs to secret i and ``points[j]``.

    Guarantee: any ``threshold - 1`` shares of a secret are jointly uniform, whatever the secret is.

    Args:
        secrets_in: 32 bytes each; an empty sequence gives an empty list.
        points: distinct evaluation points in 1..65536.
        threshold: shares needed to recover, from 2 to ``len(points)``.

    Raises:
        SecAggError: a secret of another length, unusable points, or an impossible threshold.
    """
    _check(points, threshold)
    if any(len(secret) != SECRET_BYTES for secret in secrets_in):
        raise SecAggError(f"A secret to share is not {SECRET_BYTES} bytes long: share keys and seeds only.")
    if not secrets_in:
        return []
    width = len(secrets_in) * LIMBS
    coefficients = np.empty((threshold, width), dtype=np.float64)
    coefficients[0] = np.frombuffer(b"".join(bytes(s) for s in secrets_in), dtype="<u2")
    coefficients[1:] = _uniform((threshold - 1) * width).reshape(threshold - 1, width)
    shares = _evaluate(tuple(points), coefficients)
    coefficients.fill(0.0)
    low = shares.astype("<u2").reshape(len(points), -1, LIMBS)
    high = np.packbits((shares >> 16).astype(np.uint8).reshape(len(points), -1, LIMBS), axis=2)
    return [[low[j, i].tobytes() + high[j, i].tobytes() for j in range(len(points))] for i in range(len(secrets_in))]


def combine(shares: Sequence[Sequence[bytes]], points: Sequence[int]) -> list[bytes | None]:
    """Recovers secrets whose shares all belong to the same ``points``.

    Args:
        shares: ``shares[i][j]`` is the share of secret i at ``points[j]``; 34 bytes each.
        points: exactly as many distinct points as the threshold.

    Returns:
        One secret each, or None where the shares are no shares of a 32-byte secret. Wrong shares that happen
        to give 32 bytes are *not* noticed here: the caller compares with a commitment or a public key.

    Raises:
        SecAggError: unusable points or a share of another length.
    """
    _check(points, min(2, len(points)))
    if not shares:
        return []
    if any(len(row) != len(points) or any(len(share) != SHARE_BYTES for share in row) for row in shares):
        raise SecAggError(f"A share is not {SHARE_BYTES} bytes long or one is missing: give one a point.")
    raw = np.frombuffer(b"".join(share for row in shares for share in row), dtype=np.uint8)
    raw = raw.reshape(len(shares), len(points), SHARE_BYTES)
    low = np.ascontiguousarray(raw[:, :, :SECRET_BYTES]).view("<u2").astype(np.float64)
    values = low + 65536.0 * np.unpackbits(raw[:, :, SECRET_BYTES:], axis=2)
    limbs = _mod(np.einsum("j,ijl->il", _lagrange_at_zero(tuple(points)), values))
    valid = (values.max(axis=(1, 2)) < PRIME) & (limbs.max(axis=1) < 65536)
    return [limbs[i].astype("<u2").tobytes() if valid[i] else None for i in range(len(shares))]


def _check(points: Sequence[int], threshold: int) -> None:
    if threshold < 2 or threshold > len(points):
        raise SecAggError(
            f"Threshold {threshold} is impossible for {len(points)} shares: use at least 2 and at most {len(points)}."
        )
    if len(points) > MAX_POINTS or len(set(points)) != len(points) or min(points) < 1 or max(points) >= PRIME:
        raise SecAggError("Evaluation points must be distinct, between 1 and 65536, and at most 16384.")


def _evaluate(points: tuple[int, ...], coefficients: Matrix) -> npt.NDArray[np.uint32]:
    """The polynomials at all points, in products too small for the BLAS to start threads of its own."""
    powers, shares = _vandermonde(points, len(coefficients)), np.empty((len(points), coefficients.shape[1]), np.uint32)
    rows = max(1, _SMALL_PRODUCT // coefficients.size)
    for start in range(0, len(points), rows):
        shares[start : start + rows] = _mod(powers[start : start + rows] @ coefficients)
    return shares


def _mod(values: Matrix) -> Matrix:
    return np.asarray(values - np.floor(values / PRIME) * PRIME, dtype=np.float64)


def _uniform(count: int) -> Matrix:
    """Uniform field elements from the operating system's CSPRNG; 2^32 - 1 is the one value to reject."""
    words = np.frombuffer(secrets.token_bytes(4 * count), dtype="<u4").copy()
    while (bad := np.flatnonzero(words == 0xFFFFFFFF)).size:
        words[bad] = np.frombuffer(secrets.token_bytes(4 * bad.size), dtype="<u4")
    return (words % PRIME).astype(np.float64)


@lru_cache(maxsize=4)
def _vandermonde(points: tuple[int, ...], threshold: int) -> Matrix:
    x = np.array(points, dtype=np.float64)
    matrix = np.ones((len(points), threshold), dtype=np.float64)
    for power in range(1, threshold):
        matrix[:, power] = _mod(matrix[:, power - 1] * x)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=64)
def _lagrange_at_zero(points: tuple[int, ...]) -> Matrix:
    """Weights w_j = prod_{m != j} x_m / (x_m - x_j) mod p."""
    x = np.array(points, dtype=np.int64)
    top = np.ones(len(x), dtype=np.int64)
    bottom = np.ones(len(x), dtype=np.int64)
    for m, point in enumerate(points):
        keep = np.arange(len(x)) != m
        top[keep] = top[keep] * point % PRIME
        bottom[keep] = bottom[keep] * ((point - x[keep]) % PRIME) % PRIME
    inverse, base, exponent = np.ones_like(bottom), bottom, PRIME - 2
    while exponent:
        if exponent & 1:
            inverse = inverse * base % PRIME
        base, exponent = base * base % PRIME, exponent >> 1
    weights = (top * inverse % PRIME).astype(np.float64)
    weights.setflags(write=False)
    return weights
