"""The systems that the simulation benchmark compares: one round of virtual devices, the same updates in each.

Every system runs in a process of its own: ``python -m benchmarks.simulators SYSTEM JOB --devices N ...`` prints one
JSON object and leaves the mean of the updates in ``--mean``, so that they can be checked against each other.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from flwr.app import Context, Message

from coordinator.accumulator import ExactAccumulator
from coordinator.collect import Broadcast, Collected, PlainCollector
from coordinator.courier import Courier
from coordinator.population import Participant
from simulations.lanes import effective_lanes
from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape, Vector
from umbel.config import RunConfig

STEPS = 4
_EXAMPLES = 4
Mean = Callable[[int], Vector]
"""One round: its number in, the mean of all devices' updates out."""


@functools.cache
def noop_spec(mb: float) -> AdapterSpec:
    """An adapter of ``mb`` megabytes, the same object in one process, for every system."""
    return AdapterSpec.from_shapes({"m.lora_A.weight": (8, int(mb * 1e6 / 4 / 8))}, LoraShape(8, 16.0))


@functools.cache
def _pattern(size: int) -> Vector:
    return np.random.default_rng(0).normal(scale=1e-3, size=size).astype(np.float32)


def noop_update(spec: AdapterSpec, device: int) -> Vector:
    """What device number ``device`` (from 0) sends: as large as a real update, at no cost of training."""
    return np.asarray(_pattern(spec.size) * np.float32(1 + device % 7), dtype=np.float32)


def noop(message: Message, context: Context) -> Message:
    """A client that trains nothing."""
    return Message(wire.pack_train_reply(_noop_reply(context)), reply_to=message)


def _noop_reply(context: Context) -> wire.TrainReply:
    spec = noop_spec(float(context.run_config["mb"]))
    device = int(context.node_config["partition-id"])
    return wire.TrainReply(spec.hash, noop_update(spec, device), {"examples": 1.0})


class _Noop:
    """:func:`noop` as this project's own client does it: what is summed in its process is not packed before."""

    def __call__(self, message: Message, context: Context) -> Message:
        return noop(message, context)

    def replies(
        self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int
    ) -> list[wire.TrainReply | wire.Refusal]:
        return [_noop_reply(context) for context in contexts]


noop_client = _Noop()
"""Looked up by name in the actors."""


class Job:
    """What is simulated: the broadcast and the client, for a number of devices."""

    def __init__(self, kind: str, devices: int, mb: float, root: Path, lanes: int) -> None:
        self.kind = kind
        self.devices = devices
        self.lanes = lanes
        self.root = root
        if kind == "noop":
            self.flat: dict[str, Any] = {"mb": mb}
            self.spec = noop_spec(mb)
            self.vector = _pattern(self.spec.size)
            return
        from mllm.warm import warm_model

        self.flat = training_options(root, devices, lanes)
        warm = warm_model(RunConfig.from_flat(self.flat))
        self.spec, self.vector = warm.tuned.spec, warm.initial

    def broadcast(self, number: int) -> Broadcast:
        """What goes down; a number of its own makes every device train anew."""
        return Broadcast(number, self.spec, lambda _rank: (self.spec, self.vector), self.spec)

    def order(self, number: int) -> wire.TrainOrder:
        """The same as an order."""
        return wire.TrainOrder(number, self.spec.hash, self.vector)

    def participants(self, nodes: Sequence[int]) -> list[Participant]:
        """Everybody."""
        return [Participant(node, f"{node}", self.spec.lora.rank) for node in nodes]


def training_options(root: Path, devices: int, lanes: int) -> dict[str, Any]:
    """Options of four LoRA steps of one example each on a tiny vision-language model, which is made if need be."""
    base, data = root / "base", root / f"data{devices}"
    if not base.exists():
        from mllm.testing import tiny_composed

        tiny_composed(width=128, layers=4).save(base)
    if not data.exists():
        _make_data(data, devices * _EXAMPLES)
    flat = {
        "run.directory": str(root / "runs"),
        "run.id": "benchmark",
        "model.name": str(base),
        "model.quantization": "none",
        "task.name": "folder",
        "task.data": str(data),
        "task.partition": "iid",
        "task.minimum": _EXAMPLES,
        "train.amount": STEPS,
        "train.batch-size": 1,
        "train.microbatch": 1,
        "train.optimizer": "sgd",  # AdamW divides by the size of a gradient, and so makes much of its rounding
        "train.learning-rate": 0.1,
        "train.schedule": "constant",
        "federation.clients": devices,
        "federation.lanes": lanes,
        "federation.minimum": 1,
        "strategy.name": "fedit",
        "privacy.unit": "none",
        "secagg.enabled": False,
    }
    return RunConfig.from_flat(flat).to_flat()


def _make_data(path: Path, count: int) -> None:
    from PIL import Image

    path.mkdir(parents=True)
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
    for split, number in (("train", count), ("eval", 6)):
        lines = []
        for place in range(number):
            name = list(colours)[place % 3]
            pixels = np.random.default_rng(place).normal(0, 12, (32, 32, 3)) + colours[name]
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / f"{split}{place}.png", compress_level=1)
            question = {"image": f"{split}{place}.png", "question": "what colour is the shape ?", "answer": name}
            lines.append(json.dumps(question))
        (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


# --- the systems: each yields its round, warm -------------------------------------------------------------------


@contextmanager
def ours(job: Job, actors: int) -> Iterator[Mean]:
    """RayGrid and the plain collector."""
    from simulations.clients import STOCK
    from simulations.cluster import ray_session
    from simulations.ray_grid import RayGrid

    client = "benchmarks.simulators:noop_client" if job.kind == "noop" else STOCK
    if job.kind == "train":
        client = "benchmarks.simulators:timed"
        os.environ["UMBEL_BENCHMARK_STEPS"] = str(job.root / "steps")
        (job.root / "steps").mkdir(exist_ok=True)
    lanes = effective_lanes(job.lanes, job.devices) if job.kind == "train" else 1
    with (
        ray_session(cpus=actors, gpus=0, store_mb=2000) as _,
        RayGrid(job.devices, job.flat, client=client, actors=actors, lanes=lanes) as grid,
    ):
        collector = PlainCollector(Courier(grid), timeout=3600.0)

        def run(number: int) -> Vector:
            found = collector.collect(job.participants(list(grid.get_node_ids())), job.broadcast(number))
            return _mean(found, job)

        yield run


@contextmanager
def actors(job: Job, count: int) -> Iterator[Mean]:
    """Hand-written Ray actors: one broadcast, one call an actor, partial sums."""
    import ray

    from simulations.cluster import ray_session

    class Worker:
        def run(self, order: wire.TrainOrder, devices: Sequence[int], mb: float) -> Any:
            spec = noop_spec(mb)
            total = ExactAccumulator(spec.size)
            for device in devices:
                update = noop_update(spec, device)
                spec.check(update)
                total.add(update, 1.0)
            return total

    with ray_session(cpus=count, gpus=0, store_mb=2000):
        workers = [ray.remote(Worker).remote() for _ in range(count)]

        def run(number: int) -> Vector:
            order = ray.put(job.order(number))
            parts = [range(start, job.devices, count) for start in range(count)]
            calls = [w.run.remote(order, part, job.flat["mb"]) for w, part in zip(workers, parts, strict=True)]
            whole = ExactAccumulator(job.spec.size)
            for part in ray.get(calls):
                whole.merge(part)
            return whole.mean()

        yield run


@contextmanager
def loop(job: Job, _: int) -> Iterator[Mean]:
    """One device after the other on a warm model, without any runtime."""
    train = _trainer(job)

    def run(number: int) -> Vector:
        total = ExactAccumulator(job.spec.size)
        for device in range(job.devices):
            total.add(train(device, number), 1.0)
        return total.mean()

    yield run


@contextmanager
def pfl(job: Job, _: int) -> Iterator[Mean]:
    """pfl 0.6's SimulatedBackend in one process, with the same local work in its user function."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.common_types import Population
    from pfl.context import CentralContext
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import AlgorithmHyperParams, ModelHyperParams
    from pfl.internal.ops import numpy_ops
    from pfl.internal.ops.selector import set_framework_module
    from pfl.metrics import Metrics
    from pfl.stats import MappedVectorStatistics

    set_framework_module(numpy_ops)
    train = _trainer(job)
    order = iter(range(10**9))
    users = FederatedDataset(lambda user: Dataset([np.zeros(1)], user_id=str(user)), lambda: next(order) % job.devices)
    backend = SimulatedBackend(users, users)
    round_number = [0]

    class Algorithm:
        def simulate_one_user(self, model: Any, dataset: Any, context: Any) -> Any:
            update = train(int(dataset.user_id), round_number[0])
            return MappedVectorStatistics({"adapter": update}, weight=1.0), Metrics()

    def run(number: int) -> Vector:
        round_number[0] = number
        context = CentralContext(
            current_central_iteration=number,
            do_evaluation=False,
            cohort_size=job.devices,
            population=Population.TRAIN,
            model_train_params=ModelHyperParams(),
            model_eval_params=ModelHyperParams(),
            algorithm_params=AlgorithmHyperParams(),
            seed=number,
        )
        found, _metrics = backend.gather_results(None, Algorithm(), central_context=context)
        found.average()
        return np.asarray(found["adapter"], dtype=np.float32)

    yield run


def _trainer(job: Job) -> Callable[[int, int], Vector]:
    """What a device does, by its number and the round's."""
    if job.kind == "noop":
        return lambda device, _number: noop_update(job.spec, device)
    from client.local_site import LocalSite
    from client.store import MemoryStore

    config = RunConfig.from_flat(job.flat)

    def train(device: int, number: int) -> Vector:
        site = LocalSite(config, device, job.devices, MemoryStore(), run="benchmark")
        reply = site.train(job.order(number))
        assert isinstance(reply, wire.TrainReply)
        return np.asarray(reply.update, dtype=np.float32)

    return train


def in_flower(job: Job, actors_: int, repeats: int, *, packed: bool) -> tuple[list[float], Vector]:
    """Flower's stock simulation runtime, or the same with many devices a message; seconds of each warm round."""
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    flat, kind, devices = dict(job.flat), job.kind, job.devices
    client, server = ClientApp(), ServerApp()

    def answer(message: Message, context: Context) -> Message:
        # This entry to the runtime hands over no options, and lets nobody change them.
        place = {**context.node_config, "num-partitions": devices}
        own = Context(context.run_id, context.node_id, place, context.state, flat)
        if kind == "noop":
            return noop(message, own)
        from simulations.client_app import app

        return app(message, own)

    client.train()(answer)
    client.query("cohort")(answer)
    times: list[float] = []
    means: list[Vector] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < devices:
            time.sleep(0.1)
        inner: Grid = grid
        if packed:
            from simulations.cohort_grid import CohortGrid

            lanes = effective_lanes(job.lanes, devices) if kind == "train" else 1
            inner = CohortGrid(grid, devices, lanes=lanes, carriers=actors_)
        collector = PlainCollector(Courier(inner), timeout=3600.0)
        everybody = job.participants(sorted(inner.get_node_ids()))
        # So that all actors are up and warm; packed, a few devices would reach only one of them.
        collector.collect(everybody if packed else everybody[: 8 * actors_], job.broadcast(1))
        for repeat in range(repeats):
            started = time.perf_counter()
            found = collector.collect(everybody, job.broadcast(2 + repeat))
            times.append(time.perf_counter() - started)
            means.append(_mean(found, job))

    logging.getLogger("flwr").setLevel(logging.ERROR)
    backend = {"init_args": {"num_cpus": actors_, "include_dashboard": False}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, client, devices, backend_config=backend)  # type: ignore[arg-type]
    return times, means[0]


class _Timed:
    """The project's client, which notes how long the joint training steps take: data, forward, backward, optimizer."""

    def __init__(self) -> None:
        from simulations.clients import StockClient

        self._inner = StockClient()

    def __call__(self, message: Message, context: Context) -> Message:
        return self._inner(message, context)

    def warm(self, run_config: dict[str, Any]) -> None:
        from simulations.batched import trainer

        class Timed(trainer.LaneGroup):
            def run(self) -> None:
                started = time.perf_counter()
                super().run()
                with (Path(os.environ["UMBEL_BENCHMARK_STEPS"]) / str(os.getpid())).open("a") as stream:
                    stream.write(f"{time.perf_counter() - started}\n")

        trainer.LaneGroup = Timed  # type: ignore[misc]
        self._inner.warm(run_config)

    def many(self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int) -> list[Message]:
        return self._inner.many(messages, contexts, lanes=lanes)

    def replies(
        self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int
    ) -> list[wire.TrainReply | wire.Refusal]:
        return self._inner.replies(messages, contexts, lanes=lanes)


timed = _Timed()
"""Looked up by name in the actors."""


def _mean(found: Collected, job: Job) -> Vector:
    if found.mean is None or len(found.survivors) != job.devices:
        raise SystemExit(f"only {len(found.survivors)} of {job.devices} devices answered: {found.rejected}")
    return found.mean


class _Peak(threading.Thread):
    """Largest resident memory of this process and all its children together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    total += memory.rss - getattr(memory, "shared", 0)
                except psutil.Error:
                    continue
            self.mb = max(self.mb, total / 1e6)

    def stop(self) -> float:
        self._over.set()
        self.join()
        return self.mb


SYSTEMS: dict[str, Any] = {"ours": ours, "actors": actors, "loop": loop, "pfl": pfl}


def measure(system: str, job: Job, actors_: int, repeats: int) -> tuple[dict[str, Any], Vector]:
    """Median seconds of a warm round, and its mean."""
    if system in ("flower", "packed"):
        times, mean = in_flower(job, actors_, repeats, packed=system == "packed")
        return {"seconds": statistics.median(times)}, mean
    peak = _Peak()
    peak.start()
    with ExitStack() as stack:
        run = stack.enter_context(SYSTEMS[system](job, actors_))
        if system != "loop" or job.kind == "noop":
            run(1)
        steps = job.root / "steps"
        times, batched, means = [], [], []
        for repeat in range(repeats):
            before = _noted(steps)
            started = time.perf_counter()
            found = run(2 + repeat)
            times.append(time.perf_counter() - started)
            means.append(found)
            batched.append((_noted(steps) - before) / actors_)
        figures = {"seconds": statistics.median(times), "peak_mb": peak.stop()}
        if job.kind == "train" and system == "ours":
            figures["steps_s"] = batched[times.index(statistics.median_low(times))]
        return figures, means[0]


def _noted(folder: Path) -> float:
    return (
        sum(float(line) for note in folder.glob("*") for line in note.read_text().split()) if folder.is_dir() else 0.0
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one system once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=[*SYSTEMS, "flower", "packed"])
    parser.add_argument("job", choices=["noop", "train"])
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--mb", type=float, default=0.1)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--mean", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    root = chosen.root or Path(tempfile.mkdtemp(prefix="umbel-bench-"))
    job = Job(chosen.job, chosen.devices, chosen.mb, root, chosen.lanes)
    figures, mean = measure(chosen.system, job, chosen.actors, chosen.repeats)
    if chosen.mean is not None:
        np.save(chosen.mean, mean)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    # Actors import this module by its name; the classes of __main__ would be others.
    from benchmarks import simulators

    sys.exit(simulators.main())
