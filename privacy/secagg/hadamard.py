"""Random signs and a block Hadamard transform: an orthonormal rotation that flattens a vector.

Kairouz et al. 2021 (2102.06387), section 4.2, with blocks in place of one transform of the padded whole. Each
coordinate of a rotated block x has |y_j| <= ||x|| sqrt(2 ln(2/p) / b) except with probability p over the signs,
so fewer bits carry the sum. Being orthonormal and linear it keeps norms and commutes with the sum.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from umbel.errors import SecAggError

MAX_BLOCK = 1 << 14
_GROUP = 1 << 17
_FACTOR = 32
_COLUMNS = 128


def block_size(length: int) -> int:
    """A power of two: 16384, or for a short vector the next one at least as long as the vector."""
    return min(MAX_BLOCK, 1 << max(0, length - 1).bit_length())


def padded(length: int) -> int:
    """``length`` rounded up to whole blocks."""
    block = block_size(length)
    return -(-length // block) * block


def coordinate_bound(length: int, norm: float, log_failure: float) -> float:
    """No coordinate of the rotated vector exceeds this, except with probability exp(-log_failure).

    Hoeffding's inequality for random signs and a union bound over both signs of all coordinates.
    """
    block = block_size(length)
    return norm * min(1.0, math.sqrt(2.0 * (log_failure + math.log(2.0 * padded(length))) / block))


def rotate(values: npt.NDArray[np.float32], seed: bytes) -> npt.NDArray[np.float32]:
    """The rotated vector, zero-padded to whole blocks; a new array.

    Args:
        values: float32, one-dimensional, at least one value.
        seed: public randomness for the signs; must not be known when ``values`` are chosen.
    """
    out = np.zeros(padded(len(values)), dtype=np.float32)
    out[: len(values)] = values
    _flip(out, seed)
    _transform(out, block_size(len(values)))
    return out


def unrotate(rotated: npt.NDArray[np.float64], length: int, seed: bytes) -> npt.NDArray[np.float64]:
    """The inverse of :func:`rotate` on a sum of rotated vectors: the first ``length`` values, in place."""
    if len(rotated) != padded(length):
        raise SecAggError(f"A rotated vector has {len(rotated)} values, expected {padded(length)} for {length}.")
    _transform(rotated, block_size(length))
    _flip(rotated, seed)
    return rotated[:length]


def _flip(values: npt.NDArray[np.float32] | npt.NDArray[np.float64], seed: bytes) -> None:
    """Multiplies by the signs that ``seed`` gives, one bit of AES-CTR a value."""
    key = hashlib.sha256(b"umbel-secagg/signs" + seed).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, len(values), _GROUP):
        part = values[start : start + _GROUP]
        bits = np.unpackbits(np.frombuffer(cipher.update(bytes(_GROUP // 8)), dtype=np.uint8))
        part *= (1 - 2 * bits[: len(part)].view(np.int8)).astype(values.dtype)


def _transform(values: npt.NDArray[np.float32] | npt.NDArray[np.float64], block: int) -> None:
    """Orthonormal Walsh-Hadamard transform of every block, in place.

    A Kronecker factorisation into matrices of at most 32 x 32 passes through the data three times, where
    butterflies would log2(b) times. The products are kept small enough that the BLAS does not start threads of
    its own for each, which on busy cores costs a hundred times the work.
    """
    step = max(1, _GROUP // block) * block
    scratch = np.empty(min(step, len(values)), dtype=values.dtype)
    for start in range(0, len(values), step):
        group = values[start : start + step]
        inner = 1
        while inner < block:
            factor = min(_FACTOR, block // inner)
            matrix = _matrix(factor, values.dtype)
            half = scratch[: len(group)]
            if inner == 1:
                shape = (-1, min(_FACTOR, block // factor), factor)
                np.matmul(group.reshape(shape), matrix, out=half.reshape(shape))
            else:
                shape = (-1, factor, inner)
                source, target = group.reshape(shape), half.reshape(shape)
                for low in range(0, inner, _COLUMNS):
                    part = slice(low, low + _COLUMNS)
                    np.matmul(matrix, source[:, :, part], out=target[:, :, part])
            group[:] = half
            inner *= factor


def _matrix(size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / math.sqrt(2.0)
    return matrix.astype(dtype)
