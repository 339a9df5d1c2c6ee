"""Whether a base fits into memory before it is loaded, from the headers of its files: no weight is read.

Loading maps the files and stores one layer after the other, and pages of a mapped file give way. What must fit is
therefore the weights as they are stored in the end, and beside them the largest one in float32 while it is converted.
Where the headers leave a doubt the smaller number is taken: a base that fits is never refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mllm.zoo.memory import BITS
from umbel.errors import ModelError
from umbel.machine import memory_limit

GIB = 1 << 30
_MOST_HEADER = 1 << 28
_EMBEDDINGS = ("embed_tokens.weight", "backbone.embeddings.weight")
_HEAD = "lm_head.weight"
_PRUNED = (".q_proj.", ".k_proj.", ".v_proj.", ".o_proj.", ".dense.")
_FLOATS = ("F", "BF")
_SIGNS = ("cannot allocate memory", "can't allocate memory", "not enough memory", "out of memory", "unable to mmap")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: its name, its dtype as safetensors writes it, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many."""
        count = 1
        for side in self.shape:
            count *= side
        return count


def check_room(
    name: str,
    path: Path,
    backend: str,
    device: torch.device,
    compute: torch.dtype,
    *,
    parts: Mapping[str, str] | None = None,
    prepared: bool = False,
) -> None:
    """Refuses a base that cannot fit into the memory of ``device``. What cannot be read is left to loading.

    Args:
        name: what the user wrote.
        path: the directory of the checkpoint.
        backend: how linear weights are stored, or ``auto``.
        device: where.
        compute: dtype of all that is not quantized.
        parts: backend of parts that are stored otherwise.
        prepared: attention may be pruned before it is stored.

    Raises:
        ModelError: as said, with what it needs and what there is.
    """
    found = tensors(path)
    if not found:
        return
    total, available = _memory(device)
    if backend == "auto":
        backend = auto_backend(sum(one.values for one in found), device)
    chosen = {backend, *(parts or {}).values()}
    need = stored_bytes(found, chosen, compute, tied=_tied(path), pruned=prepared)
    if need <= available:
        return
    smaller = "" if backend.startswith("nf4") else "set model.quantization (--quantization) to nf4, "
    where = "" if device.type == "cpu" else f" on {device}"
    raise ModelError(
        f"{name} stored as {backend!r} needs at least {need / GIB:.1f} GiB of memory{where}, and "
        f"{available / GIB:.1f} of {total / GIB:.1f} are available: {smaller}choose a smaller system (umbel zoo) or "
        "use a machine or container with more."
    )


def auto_backend(values: int, device: torch.device, memory: int | None = None) -> str:
    """What ``auto`` stores ``values`` weights as: NF4 on CUDA and where int8 would take half of the memory or more."""
    if device.type == "cuda":
        return "nf4"
    return "int8-weight-only" if values <= (memory_limit()[0] if memory is None else memory) / 2 else "nf4"


def stored_bytes(
    found: list[Stored], backends: set[str], compute: torch.dtype, *, tied: bool = True, pruned: bool = False
) -> int:
    """Bytes that ``found`` take once stored, and the largest of what is quantized in float32 beside them.

    Args:
        found: of a checkpoint.
        backends: of all parts; which part a weight belongs to is not known here, so the smallest counts.
        compute: dtype of all that is not quantized.
        tied: a head in the file may be the embedding, which is stored once.
        pruned: projections of attention may become smaller, so they are not counted.
    """
    plain = 8 * compute.itemsize
    bits = min(plain if one == "none" else BITS[one] for one in backends)
    size, largest = 0.0, 0
    for one in found:
        if (tied and one.name.endswith(_HEAD)) or (pruned and any(part in one.name for part in _PRUNED)):
            continue
        linear = len(one.shape) == 2 and one.name.endswith(".weight") and not one.name.endswith((*_EMBEDDINGS, _HEAD))
        if linear and one.dtype.startswith(_FLOATS):
            size += one.values * bits / 8
            largest = max(largest, 4 * one.values if bits < plain else 0)
        elif one.dtype.startswith(_FLOATS):
            size += one.values * plain / 8
    return round(size) + largest


def tensors(path: Path) -> list[Stored]:
    """The tensors of the files in ``path`` that transformers would load; none where a file is missing or damaged."""
    try:
        return [one for file in _files(path) for one in _header(file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def no_room(name: str, path: Path, error: BaseException) -> ModelError | None:
    """The sentence for ``error`` if it says that the system gave no memory, else None."""
    first = str(error).strip().partition("\n")[0].rstrip(".")
    out = isinstance(error, MemoryError) or getattr(error, "errno", None) == 12
    if not out and not any(sign in first.lower() for sign in _SIGNS):
        return None
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    total, available = memory_limit()
    return ModelError(
        f"{name} was given no memory while it was loaded ({first or type(error).__name__}): its files of "
        f"{size / GIB:.1f} GiB are mapped and {available / GIB:.1f} of {total / GIB:.1f} GiB are available, so raise "
        "the limit (ulimit -v, the container's), choose a smaller system (umbel zoo) or use a larger machine."
    )


def _memory(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return memory_limit()
    free, total = torch.cuda.mem_get_info(device)
    # What this process has taken and holds no tensor in is given to the next one.
    return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _files(path: Path) -> list[Path]:
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return [path / name for name in sorted(set(index["weight_map"].values()))]


def _header(file: Path) -> Iterator[Stored]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_MOST_HEADER, file.stat().st_size):
            raise ValueError
        entries = json.loads(stream.read(length))
    for name, entry in entries.items():
        if name != "__metadata__":
            yield Stored(name, str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))


def _tied(path: Path) -> bool:
    """Whether the head may be the embedding: it is not where the configuration says so."""
    try:
        config: Any = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return not any(one.get("tie_word_embeddings") is False for one in (config, config.get("text_config") or {}))
    except (OSError, ValueError, AttributeError):
        return True
