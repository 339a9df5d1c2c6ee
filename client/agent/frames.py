"""Parts: a head that declares arrays, and chunks of at most a megabyte that carry them.

Everything here that reads takes bytes from somebody else: it raises WireError for whatever was not declared, and
holds no more than was declared and allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from client.agent.agent_pb2 import ArrayHead, Head, Part
from umbel.errors import WireError

CHUNK = 1 << 20
"""Bytes of a chunk at most."""
MESSAGE = 2 * CHUNK
"""Bytes of one gRPC message at most; a head, with its options, must fit."""
TOTAL = 256 * CHUNK
"""Bytes of all arrays of one message at most, unless the site's policy says otherwise."""
ARRAYS = 4096
"""Arrays of one message at most."""
_NAME = 256
_DIMENSIONS = 8
_DTYPES: dict[str, npt.DTypeLike] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}

Arrays = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.uint8]]


def write_parts(head: Head, arrays: Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.uint8]]) -> Iterator[Part]:
    """The head, with the arrays declared in it, and their bytes in chunks; no array is copied whole.

    Raises:
        WireError: an array is neither float32 nor uint8.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise WireError(f"Array {name!r} is {array.dtype.name}, expected float32 or uint8.")
        head.arrays.append(ArrayHead(name=name, dtype=array.dtype.name, shape=array.shape))
    yield Part(head=head)
    for array in arrays.values():
        # A view of the bytes; a big-endian machine would swap here, which no platform of torch is.
        flat: Any = np.ascontiguousarray(array, dtype=_DTYPES[array.dtype.name]).reshape(-1)
        raw = memoryview(flat).cast("B") if flat.size else memoryview(b"")
        for start in range(0, len(raw), CHUNK):
            yield Part(chunk=bytes(raw[start : start + CHUNK]))


def read_parts(parts: Iterable[Part], limit: int = TOTAL) -> tuple[Head, Arrays]:
    """Reads :func:`write_parts`.

    Args:
        parts: as they arrive.
        limit: bytes of all arrays at most.

    Memory: the bytes that have arrived, at most ``limit``, and one chunk; nothing is set aside for what a head merely
    declares.

    Raises:
        WireError: no head, an array that is declared wrongly or twice, more than ``limit``, or more or fewer bytes
            than were declared.
    """
    stream = iter(parts)
    first = next(stream, None)
    if first is None or first.WhichOneof("part") != "head":
        raise WireError("A message does not begin with its head: both ends must run the same version of umbel.")
    head = first.head
    sizes = _declared(head, limit)
    total = sum(sizes.values())
    data = bytearray()
    for part in stream:
        chunk = part.chunk
        if part.WhichOneof("part") != "chunk" or not 0 < len(chunk) <= CHUNK:
            raise WireError(f"A message has a part that is no chunk of 1 to {CHUNK} bytes: it was altered on the way.")
        if len(data) + len(chunk) > total:
            raise WireError(f"A message carries more than the {total} bytes that its head declares: it was altered.")
        data += chunk
    if len(data) != total:
        raise WireError(f"A message ends after {len(data)} of {total} bytes: the sender went away, ask again.")
    return head, _split(head, bytes(data), sizes)


def _declared(head: Head, limit: int) -> dict[str, int]:
    """Bytes by array name, checked before anything is read."""
    if len(head.arrays) > ARRAYS:
        raise WireError(f"A message declares {len(head.arrays)} arrays, at most {ARRAYS} are taken.")
    sizes: dict[str, int] = {}
    widest = 0
    for array in head.arrays:
        if not 0 < len(array.name) <= _NAME or array.name in sizes:
            raise WireError(f"A message declares an array without a name, or twice the same: {array.name[:_NAME]!r}.")
        if array.dtype not in _DTYPES or len(array.shape) > _DIMENSIONS:
            raise WireError(
                f"A message declares array {array.name!r} as {array.dtype[:_NAME]!r} of {len(array.shape)} dimensions, "
                f"expected float32 or uint8 of at most {_DIMENSIONS}."
            )
        width = np.dtype(_DTYPES[array.dtype]).itemsize
        # An empty array, too, may not have dimensions that numpy cannot count.
        widest = max(widest, math.prod(max(side, 1) for side in array.shape) * width)
        sizes[array.name] = math.prod(array.shape) * width
    total = max(widest, sum(sizes.values()))
    if total > limit:
        raise WireError(
            f"A message declares {total} bytes and at most {limit} are taken: train a smaller adapter, or let the "
            "site raise limits.message in site.toml."
        )
    return sizes


def _split(head: Head, data: bytes, sizes: Mapping[str, int]) -> Arrays:
    arrays: Arrays = {}
    start = 0
    for array in head.arrays:
        size = sizes[array.name]
        dtype = np.dtype(_DTYPES[array.dtype])
        flat = np.frombuffer(data, dtype=dtype, count=size // dtype.itemsize, offset=start)
        arrays[array.name] = flat.reshape(tuple(array.shape))
        start += size
    return arrays
