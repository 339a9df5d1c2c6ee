"""What the server half of a strategy costs, against floors.

Run: ``OPENBLAS_NUM_THREADS=1 python -m benchmarks.strategies_cost --json`` (about 20 s, 3 GB of memory).

* ``mean``: 100 clients' uploads of 10M float32 values, against reading the same memory once.
* ``flexlora``: the best rank-16 factors of 50 clients' 2048 x 2048 products, against forming the dense average and
  its SVD in float32 (LAPACK's divide and conquer, through numpy).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from strategies.base import Upload
from strategies.lowrank import best_factors
from strategies.mean import weighted_mean


def best_of(repeats: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Least wall-clock seconds of several runs, and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def mean(clients: int, size: int, distinct: int, repeats: int) -> dict[str, float]:
    """The weighted mean against one pass over the uploads.

    ``distinct`` vectors of 40 MB stand in for ``clients``: far more than any cache, and they fit small machines.
    """
    generator = np.random.default_rng(0)
    vectors = [generator.standard_normal(size, dtype=np.float32) for _ in range(distinct)]
    uploads = [Upload(vectors[i % distinct], float(1 + i % 5), 8) for i in range(clients)]
    read, _ = best_of(repeats, lambda: sum(float(u.vector.sum()) for u in uploads))
    took, found = best_of(repeats, lambda: weighted_mean(uploads))
    sample = slice(0, 100_000)
    weights = [u.weight for u in uploads]
    exact = np.average([u.vector[sample].astype(np.float64) for u in uploads], axis=0, weights=weights)
    return {
        "clients": clients,
        "values": size,
        "read_seconds": read,
        "mean_seconds": took,
        "ratio": took / read,
        "largest_error": float(np.abs(found[sample] - exact).max()),
    }


def flexlora(clients: int, width: int, rank: int, repeats: int) -> dict[str, float]:
    """QR and small SVD against the dense average and its SVD."""
    generator = np.random.default_rng(0)
    pairs = [
        (
            generator.standard_normal((width, rank), dtype=np.float32) / np.float32(clients),
            generator.standard_normal((rank, width), dtype=np.float32),
        )
        for _ in range(clients)
    ]

    def dense() -> np.ndarray:
        u, s, vt = np.linalg.svd(np.sum([b @ a for b, a in pairs], axis=0), full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vt[:rank]

    ours, (b, a) = best_of(repeats, lambda: best_factors(pairs, rank, 1.0, pairs[0][1]))
    floor, wanted = best_of(1, dense)
    return {
        "clients": clients,
        "width": width,
        "rank": rank,
        "seconds": ours,
        "dense_seconds": floor,
        "speedup": floor / ours,
        "relative_error": float(np.linalg.norm(b @ a - wanted) / np.linalg.norm(wanted)),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    figures = {
        "mean": mean(100, 10_000_000, 50, arguments.repeats),
        "flexlora": flexlora(50, 2048, 16, arguments.repeats),
    }
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, row in figures.items():
        print(name, ", ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
