"""What warmth is worth: seconds of a round with a site's agent against without one, for a base of 110M parameters.

Run it with ``python -m benchmarks.agent --json``; the last line is the result. Flower starts a fresh process for every
message, so each round here is a fresh process that hands one train order to the real ClientApp. Without an agent that
process imports torch, loads and quantizes the base and trains; with one it only carries the order over a Unix socket
to the agent, which has the base in memory. Rounds of the two kinds alternate, each trains anew, and medians are told.
The base (a SigLIP tower, Llama, random weights) and the images are made on the spot. What Flower itself adds to a
message is the same for both and left out, which favours neither in seconds and the agent in the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.output import finish, parser

WIDTH, LAYERS = 1024, 6
CLIENTS = 2


def options(root: Path, steps: int) -> dict[str, bool | int | float | str]:
    """Flat options of the run."""
    return {
        "run.directory": str(root / "runs"),
        "run.id": "warmth",
        "model.name": str(root / "base"),
        "task.name": "folder",
        "task.data": str(root / "data"),
        "task.partition": "iid",
        "task.minimum": 4,
        "lora.rank": 4,
        "train.amount": steps,
        "train.batch-size": 4,
        "train.learning-rate": 1e-3,
        "federation.clients": CLIENTS,
        "federation.minimum": 1,
        "federation.rounds": 1000,
        "strategy.name": "fedit",
        "privacy.unit": "none",
        "secagg.enabled": False,
    }


def prepare(root: Path, steps: int) -> None:
    """In a process of its own: base, images, the first adapter, the site's folder."""
    import numpy as np
    import tomli_w
    from PIL import Image

    from client.agent.house import init
    from mllm.testing import tiny_composed
    from mllm.warm import warm_model
    from umbel.config import RunConfig

    tiny_composed("siglip", width=WIDTH, layers=LAYERS).save(root / "base")
    (root / "data").mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 32), ("eval", 4)):
        lines = []
        for number in range(count):
            name = f"{split}{number}.png"
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "data" / name)
            lines.append(json.dumps({"image": name, "question": "what colour is the shape ?", "answer": "red"}))
        (root / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    warm = warm_model(RunConfig.from_flat(options(root, steps)))
    np.save(root / "adapter.npy", warm.initial)
    facts = {
        "spec": warm.tuned.spec.hash,
        "adapter": int(warm.initial.size),
    }
    (root / "facts.json").write_text(json.dumps(facts))
    site = root / "site"
    site.mkdir()
    table = {
        "name": "site",
        "coordinator": [{"name": "coordinator", "socket": "a.sock"}],
        "model": [{"name": str(root / "base")}],
        "data": [
            {
                "name": str(root / "data"),
                "root": str(root / "data"),
                "columns": ["image", "question", "answer"],
                "part": 0,
            }
        ],
        "runs": {
            "approval": "none",
            "strategies": ["fedit"],
            "rank": 4,
            "steps": 1000,
            "rounds": 1000,
            "secure-aggregation": False,
            "cohort": 1,
            "privacy": ["none"],
        },
    }
    (site / "site.toml").write_text(tomli_w.dumps(table))
    init(site, "site")


def message(root: Path, steps: int, round_number: int, agent: bool) -> None:
    """In a process of its own: what one train message makes the ClientApp do."""
    import numpy as np
    from flwr.app import Context, Message, RecordDict

    from client.client_app import app
    from simulations.orders import adopt_identity
    from simulations.virtual_grid import stamped
    from umbel import wire

    adopt_identity()
    facts = json.loads((root / "facts.json").read_text())
    order = wire.TrainOrder(round_number, facts["spec"], np.load(root / "adapter.npy"))
    node: dict[str, Any] = {"partition-id": 0, "num-partitions": CLIENTS}
    if agent:
        node = {"agent": f"unix:{root / 'site' / 'a.sock'}"}
    context = Context(1, 1, node, RecordDict(), options(root, steps))
    reply = app(stamped(Message(wire.pack_train_order(order), 1, "train")), context)
    refusal = wire.unpack_refusal(reply.content)
    if refusal is not None:
        raise SystemExit(refusal.message)
    update = wire.unpack_train_reply(reply.content).update
    if update.size != order.adapter.size or not np.abs(update).max() > 0:
        raise SystemExit("The round gave no update.")


def fresh(root: Path, steps: int, *arguments: str) -> float:
    """Seconds of one fresh process of this module."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.agent", "--root", str(root), "--steps", str(steps), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - started


def serve(root: Path) -> subprocess.Popen[bytes]:
    """The agent, once it listens."""
    output = root / "agent.out"
    with output.open("wb") as stream:
        command = [sys.executable, "-m", "umbel", "site", "serve", str(root / "site")]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    while "is ready" not in output.read_text():
        if process.poll() is not None:
            raise SystemExit(output.read_text())
        time.sleep(0.1)
    return process


def measure(root: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Alternating rounds with and without the agent."""
    fresh(root, steps, "--prepare")
    agent = serve(root)
    try:
        # The agent loads the base once in its life: told apart from the rounds.
        first = fresh(root, steps, "--round", "1", "--agent")
        cold, warm = [], []
        for number in range(2, rounds + 2):
            cold.append(fresh(root, steps, "--round", str(number)))
            warm.append(fresh(root, steps, "--round", str(number), "--agent"))
    finally:
        agent.terminate()
        agent.wait()
    without, with_agent = statistics.median(cold), statistics.median(warm)
    size = sum(path.stat().st_size for path in (root / "base").glob("*.safetensors"))
    return {
        "parameters_millions": round(size / 4e6, 1),
        "steps": steps,
        "rounds": rounds,
        "adapter_values": json.loads((root / "facts.json").read_text())["adapter"],
        "seconds_without": round(without, 2),
        "seconds_with": round(with_agent, 2),
        "seconds_first_with": round(first, 2),
        "times_less": round(without / with_agent, 2),
        "each_without": [round(value, 2) for value in cold],
        "each_with": [round(value, 2) for value in warm],
    }


def main() -> None:
    """Runs the benchmark, or one of its processes."""
    made = parser("Seconds of a round with a site's agent against without.")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=2, help="local steps of a round, of 4 examples each")
    made.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--round", type=int, help=argparse.SUPPRESS)
    made.add_argument("--agent", action="store_true", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.prepare:
        prepare(arguments.root, arguments.steps)
    elif arguments.round is not None:
        message(arguments.root, arguments.steps, arguments.round, arguments.agent)
    else:
        with tempfile.TemporaryDirectory(prefix="w") as folder:
            finish(measure(Path(folder), arguments.steps, arguments.rounds), as_json=arguments.json)


if __name__ == "__main__":
    main()
