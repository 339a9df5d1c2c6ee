"""Work on long vectors in cache-sized tiles, on every core.

AES and NumPy release the interpreter lock on buffers of this size, so plain threads use all cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

TILE_BYTES = 1 << 17
"""Two tiles (accumulator and key stream) and the zeros stay within a level-2 cache of 512 KB."""
_WORTH_A_THREAD = 1 << 18
_GRAIN = 1 << 12


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def in_parts(length: int, work: Callable[[int, int], None], threads: int | None = None) -> None:
    """Calls ``work(start, stop)`` on disjoint parts that cover 0..length, in as many threads as are worth it.

    Args:
        length: number of values; 0 calls nothing.
        work: must only touch its own part. Its exception is raised here.
        threads: at most so many; None for the number of cores.
    """
    wanted = min(threads or cores(), max(1, length // _WORTH_A_THREAD))
    if length == 0:
        return
    if wanted == 1:
        work(0, length)
        return
    step = -(-length // wanted)
    step += -step % _GRAIN  # parts start at multiples of the cipher's block and of whole packed bytes
    starts = range(0, length, step)
    with ThreadPoolExecutor(max_workers=wanted) as pool:
        for future in [pool.submit(work, start, min(length, start + step)) for start in starts]:
            future.result()
