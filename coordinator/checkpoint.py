"""The checkpoint: one file, replaced atomically after each round, from which a killed run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from strategies.base import StrategyState
from umbel.adapter import AdapterSpec
from umbel.errors import RunError
from umbel.files import write_atomic

_FILE = "state.safetensors"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: the last finished round; 0 before the first.
        state: what the strategy carries.
        spec_hash: of the server's adapter spec.
    """

    round: int
    state: StrategyState
    spec_hash: str


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint; a crash leaves the old one or the new one.

    Raises:
        RunError: the folder cannot be written.
    """
    head = {"format": _FORMAT, "round": checkpoint.round, "spec_hash": checkpoint.spec_hash}
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.state.arrays.items()}
    write_atomic(folder / _FILE, save(arrays, metadata={"umbel": json.dumps(head)}))


def load_checkpoint(folder: Path, spec: AdapterSpec) -> Checkpoint | None:
    """Reads the checkpoint, or None when no round has finished.

    Raises:
        RunError: the file is damaged, newer than this software, or belongs to another adapter.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as stream:
            head = json.loads(stream.metadata()["umbel"])
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        number, spec_hash, version = int(head["round"]), str(head["spec_hash"]), int(head["format"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({error}): delete it to start the run again.") from None
    if version > _FORMAT:
        raise RunError(f"The checkpoint {path} was written by a newer umbel: install that version to resume.")
    if spec_hash != spec.hash:
        raise RunError(f"The checkpoint {path} belongs to another adapter: resume with the same model and LoRA.")
    return Checkpoint(number, StrategyState(arrays), spec_hash)
