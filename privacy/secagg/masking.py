"""Masks: AES-CTR key streams added to or subtracted from a vector of integers modulo 2^16 or 2^32.

A mask is the key stream of AES-128 in counter mode (NIST SP 800-38A, section 6.5) under a key and a
*secret* initial counter block, both from HKDF. The secret counter keeps an attacker who sees many masks from
testing one guessed key against all of them. The stream is read as little-endian words. Generation and
addition are fused in tiles that stay in cache, and every thread seeks to its own part of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privacy.secagg.tiles import TILE_BYTES, in_parts
from umbel.errors import SecAggError

Words = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""One-dimensional, contiguous; arithmetic wraps modulo 2^16 or 2^32."""

KEY_BYTES = 16
MASK_SEED_BYTES = 2 * KEY_BYTES
"""A key and an initial counter block."""
_COUNTERS = 1 << 128


@dataclass(frozen=True, slots=True)
class Mask:
    """One key stream and whether it is added (+1) or subtracted (-1).

    Attributes:
        seed: 16 bytes of AES key, then 16 bytes of initial counter block. Use each seed once only.
        sign: +1 or -1.
    """

    seed: bytes = field(repr=False)
    sign: int

    def __post_init__(self) -> None:
        if len(self.seed) != MASK_SEED_BYTES or self.sign not in (1, -1):
            raise SecAggError(f"A mask needs a seed of {MASK_SEED_BYTES} bytes and the sign +1 or -1.")


def apply_masks(words: Words, masks: Sequence[Mask], *, threads: int | None = None) -> None:
    """Adds every mask to ``words`` in place, modulo the word size.

    The result does not depend on ``threads`` nor on the order of ``masks``. Applying a mask and its
    opposite restores the vector exactly. An empty vector or no mask changes nothing.

    Args:
        words: uint16 or uint32, one-dimensional, contiguous, writable.
        masks: any number; the extra memory is one tile a thread, whatever their number.
        threads: None for every core.

    Raises:
        SecAggError: another dtype or layout.
    """
    if words.dtype not in (np.dtype("<u2"), np.dtype("<u4")) or words.ndim != 1 or not words.flags.c_contiguous:
        raise SecAggError("Masks act on one-dimensional contiguous uint16 or uint32 vectors.")
    if masks:
        in_parts(len(words), lambda start, stop: _apply_part(words[start:stop], start, masks), threads)


def _apply_part(part: Words, start: int, masks: Sequence[Mask]) -> None:
    tile = TILE_BYTES // part.itemsize
    raw = np.empty(TILE_BYTES, dtype=np.uint8)
    stream, view = raw.view(part.dtype), raw.data
    blocks = start * part.itemsize // KEY_BYTES
    ciphers = [(_seek(mask.seed, blocks), np.add if mask.sign > 0 else np.subtract) for mask in masks]
    source = memoryview(bytes(TILE_BYTES))
    for low in range(0, len(part), tile):
        piece = part[low : low + tile]
        chunk, plain = stream[: len(piece)], source[: piece.nbytes]
        for cipher, combine in ciphers:
            cipher.update_into(plain, view)
            combine(piece, chunk, out=piece)
    raw.fill(0)


def _seek(seed: bytes, blocks: int) -> CipherContext:
    """The cipher of a mask, ``blocks`` blocks into its stream."""
    counter = (int.from_bytes(seed[KEY_BYTES:], "big") + blocks) % _COUNTERS
    return Cipher(algorithms.AES(seed[:KEY_BYTES]), modes.CTR(counter.to_bytes(16, "big"))).encryptor()
