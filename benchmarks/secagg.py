"""Masking, quantization, unmasking and secret sharing, against Flower's SecAgg+ functions and the AES floor.

    python -m benchmarks.secagg --json

One process. ``mask``: median wall-clock seconds for adding k pairwise masks and one self mask to a quantized vector
of d values: for umbel as it runs (on every core), for Flower's own functions (which use one), and for the bare cipher
that makes the same key streams on as many cores as umbel, without adding them. ``--threads 1`` keeps all to one core.
``peak_mb`` is the extra memory of encoding, masking, packing and framing one vector. ``unmask`` is the coordinator's
whole last step (recovering secrets, removing masks, decoding) on all cores.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.output import in_turns
from privacy.secagg import (
    Encoding,
    RoundContext,
    SecAggClient,
    SecAggCoordinator,
    SecAggParameters,
    SimulationAuthority,
    shamir,
)
from privacy.secagg.masking import Mask, apply_masks
from privacy.secagg.messages import Masked
from privacy.secagg.planes import pack, word_dtype
from privacy.secagg.quantize import quantize_into
from privacy.secagg.tiles import TILE_BYTES, in_parts
from umbel.config.secagg import SecAggConfig

CONTEXT = bytes(32)
BITS = (16, 20, 32)


def median(work: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def aes_floor(words: np.ndarray, seeds: list[bytes], threads: int | None) -> None:
    """The cipher alone: every key stream as long as ``words``, into a buffer in cache."""
    in_parts(len(words), lambda start, stop: key_streams((stop - start) * words.itemsize, seeds), threads)


def key_streams(size: int, seeds: list[bytes]) -> None:
    """One core's part of the floor: ``size`` bytes of each stream."""
    out, zeros = bytearray(TILE_BYTES), memoryview(bytes(TILE_BYTES))
    ciphers = [Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor() for seed in seeds]
    for start in range(0, size, TILE_BYTES):
        plain = zeros[: size - start]
        for cipher in ciphers:
            cipher.update_into(plain, out)


def flower_mask(vector: np.ndarray, seeds: list[bytes]) -> list[np.ndarray]:
    """What Flower's secaggplus mod does to a quantized vector: one private mask, then one for each neighbour."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        get_parameters_shape,
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    modulus = 1 << 32
    parameters = [vector]
    shape = get_parameters_shape(parameters)
    parameters = parameters_addition(parameters, pseudo_rand_gen(seeds[0], modulus, shape))
    for place, seed in enumerate(seeds[1:]):
        mask = pseudo_rand_gen(seed, modulus, shape)
        combine = parameters_addition if place % 2 else parameters_subtraction
        parameters = combine(parameters, mask)
    return parameters_mod(parameters, modulus)


def masking(sizes: list[int], degrees: list[int], repeats: int, threads: int | None) -> list[dict[str, Any]]:
    """One row a size, degree and number of bits."""
    rows = []
    for d in sizes:
        vector = np.random.default_rng(0).integers(0, 1 << 22, d, dtype=np.int64)
        for k in degrees:
            seeds = [secrets.token_bytes(32) for _ in range(k + 1)]
            masks = [Mask(seed, 1 if i % 2 else -1) for i, seed in enumerate(seeds)]
            works: list[Callable[[], object]] = [partial(flower_mask, vector, seeds)]
            for bits in BITS:
                words = vector.astype(word_dtype(bits))
                works.append(partial(apply_masks, words, masks, threads=threads))
                works.append(partial(aes_floor, words, seeds, threads))
            flower, *times = in_turns(works, repeats if d > 2_000_000 else 3 * repeats)
            for bits, ours, floor in zip(BITS, times[::2], times[1::2], strict=True):
                rows.append(
                    {
                        "d": d,
                        "k": k,
                        "bits": bits,
                        "ours_s": ours,
                        "flower_s": flower,
                        "aes_floor_s": floor,
                        "peak_mb": peak_mb(d, bits),
                        "wire_bytes_per_value": Encoding.fit(bits, d, 100, 1.0).wire_bytes / d,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def peak_mb(d: int, bits: int) -> float:
    """Extra megabytes from float vector to message."""
    encoding = Encoding.fit(bits, d, 100, 1.0)
    values = np.full(d, 1e-4, dtype=np.float32)
    masks = [Mask(secrets.token_bytes(32), 1) for _ in range(3)]
    tracemalloc.start()
    words = encoding.encode(values, {}, 1.0, CONTEXT)
    apply_masks(words, masks)
    Masked(0, CONTEXT, pack(words, bits).data).to_bytes(CONTEXT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def quantization_ms(repeats: int) -> float:
    """Milliseconds for 10M values to 20 bits, on all cores."""
    values = (np.random.default_rng(0).standard_normal(10_000_000) * 3e-4).astype(np.float32)
    words = np.empty(len(values), dtype=np.uint32)
    encoding = Encoding.fit(20, len(values), 100, 1.0)
    return 1e3 * median(lambda: quantize_into(words, values, encoding.scale, encoding.scale), repeats)


def unmasking(n: int, d: int, dropped: int) -> dict[str, Any]:
    """The coordinator's last step after a real protocol run in which the clients' own masking is left out."""
    config = SecAggConfig(bits=32, dropout=dropped / n)
    parameters = SecAggParameters.choose(config, n, d)
    context = RoundContext("benchmark", 1, 0, bytes(32))
    authority = SimulationAuthority(secrets.token_bytes(32))
    roster = authority.roster(range(n))
    clients = {id: SecAggClient(authority.identity(id), roster, parameters, context) for id in range(n)}
    coordinator = SecAggCoordinator(parameters, context, roster)
    for id, client in clients.items():
        coordinator.receive_advertisement(id, client.advertise())
    listed = coordinator.key_list()
    for id, client in clients.items():
        coordinator.receive_shares(id, client.share(listed))
    values = np.zeros(d, dtype=np.float32)
    with mock.patch("privacy.secagg.client.apply_masks"):
        for id in range(dropped, n):
            coordinator.receive_masked(id, clients[id].mask(coordinator.shares_for(id), values))
    survivors = coordinator.survivors_message()
    for id in coordinator.survivors:
        coordinator.receive_confirmation(id, clients[id].confirm(survivors))
    signatures = coordinator.signatures_message()
    for id in coordinator.confirming:
        coordinator.receive_unmasking(id, clients[id].unmask(signatures))
    cpu, wall = time.process_time(), time.perf_counter()
    coordinator.finish()
    return {
        "n": n,
        "d": d,
        "dropped": dropped,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
    }


def sharing(n: int, repeats: int) -> dict[str, Any]:
    """Milliseconds to share a client's two secrets with n others, and to recover two secrets."""
    t, pair = 2 * n // 3 + 1, [secrets.token_bytes(32), secrets.token_bytes(32)]
    shares = shamir.split(pair, range(1, n + 1), t)
    rows, points = [row[:t] for row in shares], list(range(1, t + 1))
    return {
        "n": n,
        "t": t,
        "split_ms": 1e3 * median(lambda: shamir.split(pair, range(1, n + 1), t), repeats),
        "combine_ms": 1e3 * median(lambda: shamir.combine(rows, points), repeats),
    }


def main() -> None:
    """Runs everything: about three minutes on two free cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--small", action="store_true", help="d = 100k and k = 8 only, in seconds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="cores for masking and its floor; default all")
    options = parser.parse_args()
    sizes, degrees = ([100_000], [8]) if options.small else ([1_000_000, 10_000_000], [8, 50, 100])
    unmask = [(20, 100_000, 2)] if options.small else [(100, 1_000_000, 10), (100, 10_000_000, 10)]
    result = {
        "mask": masking(sizes, degrees, options.repeats, options.threads),
        "quantize_ms_10m": quantization_ms(max(5, options.repeats)),
        "unmask": [unmasking(*row) for row in unmask],
        "shamir": [sharing(n, 5) for n in (100, 500, 1000)],
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
