"""Loading a frozen, quantized base with its processor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from mllm.checkpoint import resolve
from mllm.checkpoint_hash import checkpoint_hash
from mllm.hardware import native_bfloat16, pick_device, total_memory
from mllm.hub_processor import load_processor
from mllm.parts import find_parts, off_the_way
from mllm.processing import limit_context
from mllm.quantize import Prepare, check_backend, quantize
from mllm.quiet import no_progress_bars, quiet
from mllm.report import QuantizationReport
from mllm.zoo.loading import auto_backend, check_room, no_room
from umbel.config.model import Quantization
from umbel.errors import ModelError, QuantizationError
from umbel.machine import memory_limit

Compute = Literal["auto", "float32", "bfloat16"]
Prepared = Callable[[Any, Any], Prepare | None]
"""From the model as the checkpoint stores it and its processor to what is stored in the layers' place (or None)."""


logger = logging.getLogger("flwr.umbel")
_SHOWN = 5


@dataclass
class Base:
    """A frozen base model.

    Attributes:
        name: what the user wrote.
        path: the directory it was loaded from.
        hash: SHA-256 of its configuration and weight files, before quantization.
        model: in evaluation mode; no parameter requires a gradient.
        processor: text and images to the model's inputs.
        report: how each module is stored.
    """

    name: str
    path: Path
    hash: str
    model: Any
    processor: Any
    report: QuantizationReport

    @property
    def source(self) -> str:
        """What an adapter names as its base: the hub id, or the directory's full path."""
        return str(self.path.resolve()) if "/" not in self.name or self._here() else self.name

    def _here(self) -> bool:
        return Path(self.name).expanduser().is_dir() or "=" in self.name


def load_base(
    name: str,
    quantization: Quantization = "auto",
    *,
    device: str = "auto",
    compute: Compute = "auto",
    keep: Collection[str] = (),
    parts: Mapping[str, str] | None = None,
    prepare: Prepared | None = None,
) -> Base:
    """Loads a base from safetensors files; code from a checkpoint is never run.

    Args:
        name: ``demo``, a directory, or a hub id that AutoModelForImageTextToText loads.
        quantization: how linear weights are stored. ``auto`` is NF4 on CUDA; on a CPU torchao int8, or NF4 where
            the int8 base would take more than half of the memory that this process may use.
        device: ``auto``, ``cpu`` or ``cuda``.
        compute: dtype of activations. ``auto`` is bfloat16 on CUDA with hardware for it, else float32: on a CPU
            results then do not depend on the machine.
        keep: parts that stay unquantized, for example ``("vision",)``.
        parts: backend of parts that are stored otherwise (:func:`umbel.config.model.quantization_of_parts`).
        prepare: called before quantization; may prune the model in place, and calibrate (:mod:`mllm.calibrate`).

    Raises:
        ModelError: the checkpoint cannot be found, is incomplete, is no vision-language model, or cannot fit into
            memory; the last is said before a weight is read.
        QuantizationError: what was asked for cannot be done, or was not done.
    """
    for one in ("nf4" if quantization == "auto" else quantization, *(parts or {}).values()):
        check_backend(one)
    place = pick_device(device)
    dtype = _compute_dtype(compute, place)
    path = resolve(name)
    check_room(name, path, quantization, place, dtype, parts=parts, prepared=prepare is not None)
    with quiet(), no_progress_bars():
        model = _load_model(name, path)
        processor = load_processor(path)
        backend = _auto(model, place) if quantization == "auto" else quantization
        layers = None if prepare is None else prepare(model, processor)
        report = quantize(model, backend, place, dtype, asked=quantization, keep=keep, parts=parts, prepare=layers)
    limit_context(model)
    return Base(name, path, checkpoint_hash(path), model, processor, report)


def _compute_dtype(compute: str, device: torch.device) -> torch.dtype:
    native = native_bfloat16(device)
    if compute == "auto":
        return torch.bfloat16 if device.type == "cuda" and native else torch.float32
    if compute == "float32":
        return torch.float32
    if compute != "bfloat16":
        raise ModelError(f"Compute dtype {compute!r} is unknown: use auto, float32 or bfloat16.")
    if not native:
        raise QuantizationError(
            f"bfloat16 was asked for, but {device} has no hardware for it and would be about fifty times slower: use "
            "float32."
        )
    return torch.bfloat16


def _auto(model: Any, device: torch.device) -> str:
    values = sum(parameter.numel() for parameter in model.parameters())
    return auto_backend(values, device, min(total_memory(device), memory_limit()[0]))


def _load_model(name: str, path: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise QuantizationError(
                f"{name} is stored quantized already: give the checkpoint in full precision, loading quantizes it."
            )
        model, info = AutoModelForImageTextToText.from_pretrained(
            str(path),
            config=config,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except Exception as error:  # transformers and safetensors raise whatever their parts raise
        room = no_room(name, path, error)
        if room is not None:
            raise room from None
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"{name} cannot be loaded as a vision-language model ({first}): expected a checkpoint that "
            "AutoModelForImageTextToText loads without code of its own."
        ) from None
    # Weights that are missing or misshapen would silently be random. Published towers often come without the
    # pooling head that their class has and nobody uses.
    parts = find_parts(model)
    lost = sorted(key for key in info["missing_keys"] if not off_the_way(key, parts))
    lost += sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise ModelError(
            f"{name} lacks {len(lost)} of the model's weights (first {lost[0]}): its files are incomplete or belong to "
            "another configuration."
        )
    # Heads of other tasks and old buffers are harmless, a file of another model is not; whoever loads must see which.
    odd = sorted(str(key) for key in info["unexpected_keys"])
    if odd:
        logger.warning(
            "%s holds %d tensors that the model has no place for, and they are left out: %s%s",
            name, len(odd), ", ".join(odd[:_SHOWN]), " ..." if len(odd) > _SHOWN else "",
        )  # fmt: skip
    return model
