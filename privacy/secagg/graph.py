"""Who shares with whom: the complete graph, or a Harary graph under a public random permutation.

Bell et al. 2020, section 3.3: a k-regular Harary graph whose nodes are permuted uniformly at random is
as good as a random k-regular graph for both secrecy and correctness, and every client can compute it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def permutation(seed: bytes, size: int) -> list[int]:
    """A permutation of 0..size-1 that anybody can recompute from ``seed`` (any length).

    Sorts by 64-bit keys from an AES-CTR stream; two equal keys (probability below size^2 / 2^64) keep
    their order, which biases nothing that matters.
    """
    key = hashlib.sha256(b"umbel-secagg/graph" + seed).digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))
    order: list[int] = np.argsort(np.frombuffer(stream, dtype="<u8"), kind="stable").tolist()
    return order


class Graph:
    """The neighbourhoods of one round.

    Args:
        members: ids in ascending order.
        k: neighbours of each member, even; ``len(members) - 1`` or more makes the graph complete.
        seed: public randomness that fixes the permutation; not used by the complete graph.
    """

    def __init__(self, members: Sequence[int], k: int, seed: bytes) -> None:
        self.members = tuple(members)
        self.complete = k >= len(self.members) - 1
        self._k = k
        self._order: list[int] = []
        self._place: dict[int, int] = {}
        if not self.complete:
            self._order = [self.members[i] for i in permutation(seed, len(self.members))]
            self._place = {member: place for place, member in enumerate(self._order)}

    def neighbours(self, member: int) -> tuple[int, ...]:
        """The neighbours of ``member``, ascending, without itself. Symmetric: u in N(v) iff v in N(u)."""
        if self.complete:
            return tuple(other for other in self.members if other != member)
        place, n = self._place[member], len(self._order)
        steps = range(1, self._k // 2 + 1)
        return tuple(sorted({self._order[(place + sign * step) % n] for step in steps for sign in (1, -1)}))

    def holders(self, member: int) -> tuple[int, ...]:
        """Who holds shares of ``member``'s secrets: in the complete graph itself too, else its neighbours."""
        return self.members if self.complete else self.neighbours(member)
