"""What fits on the machines at hand: how much memory an actor takes, and how many actors there may be.

Figures are estimates from the checkpoint's headers, before anything is loaded: good to about a fifth, and meant to
refuse what cannot fit rather than to fill the last gigabyte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.checkpoint import resolve
from simulations.cluster import RayNode
from simulations.lanes import effective_lanes
from umbel.config import RunConfig
from umbel.errors import ConfigError, ModelError

_MB = float(1 << 20)
_PROCESS_MB = 400.0
"""A process with torch, transformers and PEFT, nothing loaded (measured: 330 to 400 MB)."""
_DRIVER_MB = 900.0
"""The coordinator's own process, without its base and the task."""
_KEEP = 0.9
"""Share of the free memory that may be planned with."""
_BYTES = {"nf4": 0.5625, "nf4-double": 0.516, "int8": 1.01, "int8-weight-only": 1.01}
"""Bytes a quantized value, scales included."""
_ACTIVATIONS = 34
"""Activations that a transformer layer keeps for the backward pass, a value of the hidden state (Korthikanti et al.
2022, arXiv 2205.05198, equation 1, without attention's own)."""
_TEXT = 64
"""Tokens of text an example, and of an image whose size the configuration does not tell."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Megabytes of one actor.

    Attributes:
        base_mb: the quantized base.
        load_mb: what loading needs on top for a moment, the checkpoint as it is stored.
        lane_mb: one lane: factors, gradients, optimizer state.
        activations_mb: of one forward and backward pass, however many lanes share it.
        process_mb: the process itself.
        quantization: how the base will be stored.
        gpu: whether base and lanes lie in GPU memory.
    """

    base_mb: float
    load_mb: float
    lane_mb: float
    activations_mb: float
    process_mb: float
    quantization: str
    gpu: bool = False

    def actor_mb(self, lanes: int) -> float:
        """An actor with this many lanes. Loading is over before lanes begin, so the larger of both counts."""
        return self.process_mb + self.base_mb + max(self.load_mb, self.activations_mb + lanes * self.lane_mb)


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """How a simulation is laid out.

    Attributes:
        actors: processes that play the devices.
        lanes: most devices that train in one batch.
        cpus: of an actor.
        gpus: of an actor.
        footprint: of an actor.
        driver_mb: the coordinator with its own base.
        store_mb: the object store.
        nodes: the machines.
    """

    actors: int
    lanes: int
    cpus: float
    gpus: float
    footprint: Footprint
    driver_mb: float
    store_mb: float
    nodes: tuple[RayNode, ...]

    @property
    def total_mb(self) -> float:
        """Everything together."""
        return self.driver_mb + self.store_mb + self.actors * self.footprint.actor_mb(self.lanes)

    def lines(self) -> list[tuple[str, str]]:
        """For people: what, and how much."""
        actor, foot = self.footprint.actor_mb(self.lanes), self.footprint
        machines = ", ".join(
            f"{node.cpus:g} CPUs{f', {node.gpus:g} GPUs' if node.gpus else ''}, {node.memory / _MB / 1024:.1f} GB"
            for node in self.nodes
        )
        share = f" and {self.gpus:.2f} GPU" if self.gpus else ""
        return [
            ("machines", f"{len(self.nodes)} ({machines} free)"),
            ("actors", f"{self.actors}, each {self.cpus:g} CPU{share}, about {actor:,.0f} MB"),
            ("base", f"about {foot.base_mb:,.0f} MB an actor, stored as {foot.quantization}"),
            ("lanes", f"{self.lanes} an actor, about {foot.lane_mb:,.1f} MB each"),
            ("activations", f"about {foot.activations_mb:,.0f} MB an actor"),
            ("coordinator", f"about {self.driver_mb:,.0f} MB"),
            ("object store", f"{self.store_mb:,.0f} MB"),
            ("in all", f"about {self.total_mb / 1024:,.1f} GB"),
        ]


def footprint(config: RunConfig, *, gpu: bool = False) -> Footprint:
    """Estimates an actor's memory for a run, from the headers of the base's files.

    Raises:
        ModelError: the base cannot be found or its files cannot be read.
    """
    from simulations.batched.trainer import default_rows  # imports torch, which a refusal of options need not wait for

    path = resolve(config.model.reference)
    linear, other, stored = _values(path)
    asked = config.model.quantization
    backend = ("nf4" if gpu else "int8-weight-only") if asked == "auto" else asked
    plain = 2.0 if gpu else 4.0
    base = linear * _BYTES.get(backend, plain) + other * plain
    text = _text_config(path)
    hidden, layers = int(text.get("hidden_size", 1024)), int(text.get("num_hidden_layers", 12))
    # Two factors of `hidden` by `rank` on about seven linear layers of a block; weights, gradients, two moments.
    factors = layers * 7 * 2 * hidden * config.lora.rank * 4 * 4.0
    kept = 2 if config.model.gradient_checkpointing else _ACTIVATIONS
    packed = 0.5 if backend.startswith("nf4") else 1.0  # two 4-bit weights lie in one stored value
    rows = max(default_rows(int(linear * packed) + other), min(config.train.microbatch, config.train.batch_size))
    activations = rows * (_TEXT + _image_tokens(path)) * hidden * layers * kept * plain / 2
    return Footprint(
        base_mb=base / _MB,
        load_mb=0.0 if gpu else stored / _MB,
        lane_mb=factors / _MB,
        activations_mb=activations / _MB,
        process_mb=_PROCESS_MB,
        quantization=backend,
        gpu=gpu,
    )


def plan_actors(
    config: RunConfig,
    nodes: Sequence[RayNode],
    *,
    actors: int = 0,
    store_mb: float = 512.0,
    need: Footprint | None = None,
) -> ActorPlan:
    """As many actors as fit by CPUs (or GPUs) and memory, or as many as asked for if they fit.

    Args:
        config: of the run.
        nodes: the machines; the first one also holds coordinator and object store.
        actors: how many are wanted; 0 takes as many as fit, at most one for each group of lanes of a cohort.
        store_mb: of the object store.
        need: of an actor; estimated by default.

    Raises:
        ConfigError: not even one actor fits, or fewer than asked for.
        ModelError: as :func:`footprint`.
    """
    gpu = any(node.gpus for node in nodes)
    need = need or footprint(config, gpu=gpu)
    cpus = float(config.train.threads)
    federation = config.federation
    cohort = federation.clients if federation.cohort == "all" else federation.cohort_size
    lanes = effective_lanes(federation.lanes, cohort)
    driver = _DRIVER_MB + need.base_mb
    share = 0.0
    fitting, room_mb = 0, 0.0
    for place, node in enumerate(nodes):
        free = node.memory * _KEEP / _MB - (driver + store_mb if place == 0 else 0.0)
        room_mb = max(room_mb, free)
        if node.gpus:
            share = min(1.0, max(0.05, math.ceil(need.actor_mb(lanes) / _gpu_mb() * 20) / 20))
            by_memory = int(free // need.process_mb)
            fitting += min(int(node.cpus // cpus), int(node.gpus * int(1 / share)), max(0, by_memory))
        else:
            fitting += min(int(node.cpus // cpus), max(0, int(free // need.actor_mb(lanes))))
    if fitting < max(1, actors):
        raise ConfigError(_too_large(need, lanes, actors, fitting, room_mb, cpus, nodes))
    useful = max(1, math.ceil(cohort / lanes)) if lanes > 1 else cohort
    chosen = actors or min(fitting, useful)
    return ActorPlan(chosen, lanes, cpus, share, need, driver, store_mb, tuple(nodes))


def _too_large(
    need: Footprint, lanes: int, actors: int, fitting: int, room_mb: float, cpus: float, nodes: Sequence[RayNode]
) -> str:
    wanted = max(1, actors)
    what = f"{wanted} actor{'s' if wanted > 1 else ''} of {lanes} lanes"
    if all(node.cpus < cpus for node in nodes):
        return f"An actor wants {cpus:g} CPUs and no machine has that many: lower train.threads."
    most = (
        int((room_mb - need.process_mb - need.base_mb - need.activations_mb) // need.lane_mb) if need.lane_mb else lanes
    )
    if fitting == 0 and 0 < most < lanes:
        mend = f"set federation.lanes={most} or less"
    elif fitting:
        mend = f"set simulation.actors={fitting} or less"
    else:
        mend = "choose a smaller base or model.quantization=nf4"
    return (
        f"{what} do not fit: each needs about {need.actor_mb(lanes):,.0f} MB and {cpus:g} CPU, "
        f"{max(0.0, room_mb):,.0f} MB and {sum(node.cpus for node in nodes):g} CPUs are free: {mend}."
    )


def _gpu_mb() -> float:
    import torch

    if not torch.cuda.is_available():
        return 16 * 1024.0  # the driver has none; its cluster has, of a size that nobody told
    return float(torch.cuda.get_device_properties(0).total_memory) / _MB


def _values(path: Path) -> tuple[int, int, int]:
    """Values of linear layers that are quantized, values of all else, and bytes as stored."""
    from safetensors import SafetensorError, safe_open

    linear = other = stored = 0
    for file in sorted(path.glob("*.safetensors")):
        stored += file.stat().st_size
        try:
            with safe_open(str(file), framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 # no mapping
                    shape = opened.get_slice(name).get_shape()
                    size = math.prod(shape)
                    words = ("embed", "lm_head", "projector")
                    if len(shape) == 2 and name.endswith("weight") and not any(word in name for word in words):
                        linear += size
                    else:
                        other += size
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read ({error}): its download is incomplete, get it again.") from None
    return linear, other, stored


def _text_config(path: Path) -> dict[str, Any]:
    body = _config(path)
    inner = body.get("text_config", body)
    return inner if isinstance(inner, dict) else body


def _image_tokens(path: Path) -> int:
    vision = _config(path).get("vision_config")
    if not isinstance(vision, dict):
        return _TEXT
    size, patch = vision.get("image_size"), vision.get("patch_size")
    return (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) and patch else _TEXT


def _config(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / 'config.json'} cannot be read ({error}): get the checkpoint again.") from None
    return body
