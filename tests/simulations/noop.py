"""Clients for tests of the grid itself: quick, and deadly where a file says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Message

from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (4, 250), "m.lora_B.weight": (250, 4)}, LoraShape(4, 8.0))


def update_of(partition, round_number):
    """The update of a device in a round: any float32 values that differ."""
    rng = np.random.default_rng([partition, round_number])
    return rng.normal(scale=1e-2, size=SPEC.size).astype(np.float32)


def answer(message, context):
    """A reply that depends on the device, its order and how often the device was asked before."""
    partition = int(context.node_config["partition-id"])
    asked = int(context.state.config_records.get("n", ConfigRecord({"n": 0}))["n"]) + 1
    context.state["n"] = ConfigRecord({"n": asked})
    order = wire.unpack_train_order(message.content)
    update = update_of(partition, order.round) + order.adapter
    metrics = {"examples": 1.0 + partition, "seen": 4.0, "loss": 0.5 + partition, "asked": float(asked)}
    spec_hash = SPEC.hash
    if partition == int(context.run_config.get("liar", -1)):
        update = update * np.float32(np.nan)
    if partition == int(context.run_config.get("stranger", -1)):
        spec_hash = "other"
    if partition == int(context.run_config.get("broken", -1)):
        raise ValueError("this device is broken")
    return Message(wire.pack_train_reply(wire.TrainReply(spec_hash, update, metrics)), reply_to=message)


def deadly(message, context):
    """As :func:`answer`, but the process is killed for the partition and as often as a file says."""
    path = Path(str(context.run_config["kills"]))
    partition = int(context.node_config["partition-id"])
    for note in sorted(path.glob(f"{partition}-*")):
        try:
            note.unlink()
        except FileNotFoundError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    if (path / f"always-{partition}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(message, context)
