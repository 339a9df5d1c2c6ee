"""The ServerApp of ``flwr run``: the coordinator's own; in Flower's simulation its devices share messages."""

from __future__ import annotations

import logging
import os
import time

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from coordinator.server_app import coordinate
from simulations.cohort_grid import CohortGrid
from simulations.lanes import effective_lanes
from simulations.packed import COHORT, pack_orders
from umbel.config import RunConfig

logger = logging.getLogger("flwr.umbel")
app = ServerApp()
_PATIENCE = 120.0
_CONNECT = 10.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs one federation; see coordinator.server_app."""
    coordinate(grid, context, packing)


def packing(grid: Grid, config: RunConfig) -> Grid:
    """``grid`` with many devices a message where its runtime is the simulation and its ClientApp understands that."""
    if type(grid).__name__ != "InMemoryGrid":
        return grid
    nodes = connected(grid, config.federation.clients)
    if len(nodes) != config.federation.clients or not understands(grid, nodes[0]):
        return grid
    federation = config.federation
    cohort = federation.clients if federation.cohort == "all" else federation.cohort_size
    carriers = max(1, (os.cpu_count() or 1) // config.train.threads)
    lanes = effective_lanes(federation.lanes, cohort)
    logger.info("%d devices share messages, at most %d of them a batch", len(nodes), lanes)
    return CohortGrid(grid, len(nodes), lanes=lanes, carriers=carriers)


def connected(grid: Grid, expected: int) -> list[int]:
    """The nodes, as soon as there are as many as expected, or after a few seconds."""
    deadline = time.monotonic() + _CONNECT
    while len(list(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    return sorted(grid.get_node_ids())


def understands(grid: Grid, node: int) -> bool:
    """Whether the ClientApp behind ``grid`` answers an empty packed message."""
    probe = Message(pack_orders([], {}, devices=1, lanes=1), node, COHORT, ttl=_PATIENCE, group_id="0")
    waiting = list(grid.push_messages([probe]))
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for reply in grid.pull_messages(waiting):
            return not reply.has_error() and "umbel.cohort" in reply.content
        time.sleep(0.05)
    return False
