"""Random bytes: a fresh key of the operating system for each request, expanded by AES-256-CTR.

A request never shares a key with another, so there is no state to copy into a forked process, to
race for between threads, or to seed. Expansion costs about 0.15 ns a byte with AES-NI.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from umbel.errors import PrivacyError

_CHUNK = 1 << 18
_ZEROS = memoryview(bytes(_CHUNK))


def key_stream(key: bytes, words: int) -> npt.NDArray[np.uint64]:
    """``words`` 64-bit words of the AES-256-CTR key stream of ``key``, from counter zero."""
    out = np.empty(words, dtype=np.uint64)
    view = memoryview(out.data).cast("B")
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, len(view), _CHUNK):
        end = min(start + _CHUNK, len(view))
        stream.update_into(_ZEROS[: end - start], view[start:end])
    return out


class NoiseSource(ABC):
    """Where random words come from."""

    @abstractmethod
    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """``count`` fresh, independent, uniform 64-bit words; 0 gives an empty array."""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """``count`` float64 values (k + 1/2) 2^-53 with k uniform in [0, 2^53): never 0, never 1."""
        out = (self.words(count) >> np.uint64(11)).astype(np.float64)
        out += 0.5
        out *= 2.0**-53
        # The largest k rounds up to 2^53; 1 - 2^-53 is the next float64 below one.
        return np.minimum(out, 1 - 2.0**-53, out=out)


class SystemNoise(NoiseSource):
    """The operating system's CSPRNG: the only source that protects anything. Takes no seed."""

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """See :meth:`NoiseSource.words`; safe across threads and forks."""
        return key_stream(os.urandom(32), count)


class FixedNoise(NoiseSource):
    """A repeatable source, for tests and for the data of simulations. It protects nothing.

    Raises:
        PrivacyError: unless ``for_tests`` is literally true; no configuration option sets it.
    """

    def __init__(self, seed: int, *, for_tests: bool = False) -> None:
        if for_tests is not True:
            raise PrivacyError(
                "Repeatable noise protects nobody, and SystemNoise was expected: "
                "use privacy.noise.SYSTEM, or pass for_tests=True inside a test."
            )
        self._seed = seed
        self._calls = 0

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """See :meth:`NoiseSource.words`: the n-th call of two sources with one seed gives the same words."""
        self._calls += 1
        return key_stream(hashlib.sha256(f"umbel test noise {self._seed} {self._calls}".encode()).digest(), count)


SYSTEM = SystemNoise()
"""The default source everywhere."""
