"""What answers: a base with an adapter from a folder, or a plain base."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mllm.altered import read_alterations
from mllm.load import Base, load_base
from mllm.quiet import quiet
from mllm.tasks.collate import Collator
from mllm.tune import attach
from mllm.warm import load_as
from umbel.config.model import LoraConfig, Quantization
from umbel.errors import ModelError

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that answers, its collator, and ``identity``: what its answers depend on, for resuming a prediction."""

    model: Any
    collator: Collator
    identity: str


def load_plain(name: str, quantization: Quantization) -> Subject:
    """A base without an adapter.

    Raises:
        ModelError: as :func:`mllm.load.load_base`.
    """
    base = load_base(name, quantization)
    return Subject(base.model, Collator(base.processor), f"{base.hash}/{base.report.backend}")


def load_adapter_folder(folder: Path, base_name: str | None, quantization: Quantization) -> Subject:
    """A base with an adapter as ``umbel export`` or PEFT wrote it; altered as the run altered it.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_name: what it stands on; None takes what the adapter names.
        quantization: of the base.

    Raises:
        ModelError: a file is missing or damaged, or the adapter does not fit the base.
        AdapterError: its tensors do not.
    """
    try:
        body: dict[str, Any] = json.loads((folder / _CONFIG).read_text("utf-8"))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no adapter that can be read ({error}): expected {_CONFIG} and {_WEIGHTS}."
        ) from None
    name = base_name or str(body.get("base_model_name_or_path") or "")
    if not name:
        raise ModelError(f"{folder} names no base: give one with --base.")
    altered = read_alterations(folder)
    base = load_as(altered.model_copy(update={"name": name, "quantization": quantization}), None)
    model = (
        _own(base, body, tensors, folder) if body.get("peft_type") == "UMBEL" else _by_peft(base, folder, set(tensors))
    )
    digest = hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()
    return Subject(model, Collator(base.processor), f"{base.hash}/{base.report.backend}/{altered!r}/{digest}")


def _own(base: Base, body: dict[str, Any], tensors: dict[str, Any], folder: Path) -> Any:
    try:
        config = LoraConfig.model_validate(body["options"])
    except (KeyError, ValidationError):
        raise ModelError(
            f"{folder / _CONFIG} has no options that this version knows: export the adapter again."
        ) from None
    tuned = attach(base, config, seed=int(body.get("seed", 0)))
    tuned.load(tuned.spec.flatten(tensors))
    return tuned.model.eval()


def _by_peft(base: Base, folder: Path, names: set[str]) -> Any:
    import warnings

    import peft

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=False).eval()
            wanted = set(peft.get_peft_model_state_dict(model))
        except Exception as error:  # PEFT, torch and safetensors raise whatever their parts raise
            first = " ".join(str(error).split())[:200].rstrip(".")
            raise ModelError(
                f"The adapter in {folder} does not fit {base.name} ({first}): name its own base with --base."
            ) from None
    # PEFT passes over tensors that find no place, and over places that find no tensor.
    odd = sorted(wanted ^ names)
    if odd:
        raise ModelError(
            f"The adapter in {folder} does not fit {base.name} ({len(odd)} tensors differ, first {odd[0]}): name its "
            "own base with --base."
        )
    return model
