"""Peak memory of the coordinator's collector at 10 and at 200 clients, for one vector of a million values.

Each cohort is collected in a fresh process over the in-memory grid, whose clients answer when they are asked; the
figure is the growth of the process's peak resident memory over the moment before the round. Beside it stands the
rival: Flower's ``send_and_receive``, which holds every reply of the round.

    python -m benchmarks.collector --json
"""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
from flwr.app import Context, Message

from benchmarks.output import finish, parser
from coordinator.collect import Broadcast, PlainCollector
from coordinator.courier import Courier
from coordinator.population import Participant
from simulations.memory_grid import MemoryGrid
from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape
from umbel.wire import MessageType

VALUES = 1_000_000


def measure(clients: int, rival: bool) -> float:
    """Megabytes by which collecting one round raises this process's peak."""
    spec = AdapterSpec.from_shapes({"m.lora_A.weight": (8, VALUES // 8)}, LoraShape(8, 16.0))
    vector = np.random.default_rng(0).normal(scale=1e-3, size=spec.size).astype(np.float32)

    def answer(message: Message, context: Context) -> Message:
        update = vector * np.float32(context.node_id)
        return Message(wire.pack_train_reply(wire.TrainReply(spec.hash, update, {"examples": 1.0})), reply_to=message)

    grid = MemoryGrid(answer, clients)
    cohort = [Participant(node, str(node), 8) for node in grid.contexts]
    broadcast = Broadcast(1, spec, lambda _rank: (spec, vector), spec)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if rival:
        records = wire.pack_train_order(wire.TrainOrder(1, spec.hash, vector))
        messages = [Message(records, node, MessageType.TRAIN.value) for node in grid.contexts]
        replies = [wire.unpack_train_reply(reply.content) for reply in grid.send_and_receive(messages)]
        mean = np.mean([reply.update for reply in replies], axis=0)
    else:
        collected = PlainCollector(Courier(grid), timeout=600).collect(cohort, broadcast)
        if collected.mean is None:
            raise SystemExit("no update was collected")
        mean = collected.mean
    expected = vector * np.float32((clients + 1) / 2)
    if not np.allclose(mean, expected, rtol=1e-4, atol=1e-6):
        raise SystemExit("the collected mean is wrong")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Runs both sizes, each in its own process."""
    options = parser("Peak memory of the collector.")
    options.add_argument("--one", type=int, help="measure this cohort in this process")
    options.add_argument("--rival", action="store_true")
    arguments = options.parse_args()
    if arguments.one:
        print(measure(arguments.one, arguments.rival))
        return
    figures: dict[str, dict[str, float]] = {"peak_mb": {}, "flower_peak_mb": {}}
    for clients in (10, 200):
        for key, extra in (("peak_mb", []), ("flower_peak_mb", ["--rival"])):
            command = [sys.executable, "-m", "benchmarks.collector", "--one", str(clients), *extra]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[key][str(clients)] = round(float(done.stdout.split()[-1]), 1)
    finish(figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
