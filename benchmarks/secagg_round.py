"""The whole protocol in one process: seconds by stage, bytes a client, and whether the sum is exact.

    python -m benchmarks.secagg_round --json

Vectors are sparse whole numbers of quantization steps, on which stochastic rounding is exact, so the decoded
sum must equal the sum of the survivors' integers. All clients live in one process and share one memory of
verified signatures, as in a simulation: "share" is the time of all clients together, not of one.
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.secagg import RoundContext, SecAggClient, SecAggCoordinator, SecAggParameters, SimulationAuthority
from umbel.config.secagg import SecAggConfig


def whole_steps(id: int, d: int) -> npt.NDArray[np.int64]:
    """Integers from -3 to 3, mostly 0."""
    rng = np.random.default_rng(id)
    values = np.zeros(d, dtype=np.int64)
    values[rng.integers(0, d, max(1, d // 200))] = rng.integers(-3, 4, max(1, d // 200))
    return values


def play(n: int, d: int, dropout: float) -> dict[str, Any]:
    """One round; the clients that drop do so after sharing, the costliest moment."""
    config = SecAggConfig(corrupt=0.05, dropout=max(0.05, dropout))
    parameters = SecAggParameters.choose(config, n, d)
    context = RoundContext("benchmark", 1, 0, bytes(32))
    authority = SimulationAuthority(secrets.token_bytes(32))
    roster = authority.roster(range(n))
    clients = {id: SecAggClient(authority.identity(id), roster, parameters, context) for id in range(n)}
    coordinator = SecAggCoordinator(parameters, context, roster)
    last, sent, seconds = n - 1, 0, {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    for id, client in clients.items():
        message = client.advertise()
        coordinator.receive_advertisement(id, message)
        sent += len(message) * (id == last)
    lap("advertise")
    listed = coordinator.key_list()
    for id, client in clients.items():
        message = client.share(listed)
        coordinator.receive_shares(id, message)
        sent += len(message) * (id == last)
    lap("share")
    expected = np.zeros(d, dtype=np.int64)
    for id in range(int(dropout * n), n):
        steps = whole_steps(id, d)
        expected += steps
        values = (steps / parameters.scale).astype(np.float32)
        message = clients[id].mask(coordinator.shares_for(id), values)
        coordinator.receive_masked(id, message)
        sent += len(message) * (id == last)
    lap("mask")
    survivors = coordinator.survivors_message()
    for id in coordinator.survivors:
        message = clients[id].confirm(survivors)
        coordinator.receive_confirmation(id, message)
        sent += len(message) * (id == last)
    lap("confirm")
    signatures = coordinator.signatures_message()
    for id in coordinator.confirming:
        message = clients[id].unmask(signatures)
        coordinator.receive_unmasking(id, message)
        sent += len(message) * (id == last)
    lap("unmask")
    aggregate = coordinator.finish()
    lap("finish")
    exact = bool(np.array_equal(np.rint(aggregate.sum * parameters.scale).astype(np.int64), expected))
    row = {"n": n, "mode": parameters.mode, "dropout": dropout, "exact": exact, "seconds": seconds}
    return {**row, "client_bytes": sent}


def main() -> None:
    """Runs every cohort and dropout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--small", action="store_true", help="n = 10 and 20, d = 10k, in seconds")
    options = parser.parse_args()
    cohorts, d = ([10, 20], 10_000) if options.small else ([10, 50, 100, 200, 500, 1000], 1_000_000)
    rows = []
    for n in cohorts:
        for dropout in (0.0, 0.05, 0.1):
            rows.append(play(n, d, dropout))
            print(rows[-1], flush=True)
    result = {"rounds": rows}
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
