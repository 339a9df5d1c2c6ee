"""What a run did to its base beside storing it: pruning, and fewer image tokens. It travels with the adapter.

An adapter trained on a base without half its heads, or with a quarter of the image tokens, answers otherwise on the
base as it is published. PEFT's files have no place for this, so it lies in a file of its own beside them.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from umbel.config.model import ModelConfig
from umbel.errors import ModelError
from umbel.files import write_atomic

FILE = "umbel_base.json"
_FIELDS = ("prune", "prune_share", "tokens", "token_share", "token_layer")


def is_altered(config: ModelConfig) -> bool:
    """Whether the base computes something else than the published one, rounding aside."""
    return config.prune != "none" or config.tokens != "none"


def write_alterations(folder: Path, config: ModelConfig) -> None:
    """Writes the file into an adapter's folder, where the base was altered at all."""
    if is_altered(config):
        body = {name.replace("_", "-"): getattr(config, name) for name in _FIELDS}
        write_atomic(folder / FILE, json.dumps({"model": body}, indent=1).encode() + b"\n")


def read_alterations(folder: Path) -> ModelConfig:
    """Options that say how to alter the base; those of an unaltered one where the file is missing.

    Raises:
        ModelError: the file is damaged, or of a later version.
    """
    path = folder / FILE
    if not path.is_file():
        return ModelConfig()
    try:
        body = json.loads(path.read_text("utf-8"))["model"]
        if set(body) != {name.replace("_", "-") for name in _FIELDS}:
            raise ValueError
        return ModelConfig.model_validate(body)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise ModelError(f"{path} cannot be read: export the adapter again, with the version that reads it.") from None


def described(config: ModelConfig) -> str:
    """In words, for people: ``pruned (heads, 50%), image tokens cut to 25% (tome)``."""
    done = []
    if config.prune != "none":
        done.append(f"pruned ({config.prune}, {config.prune_share:.0%})")
    if config.tokens != "none":
        done.append(f"image tokens reduced ({config.tokens}, share {config.token_share:g}, layer {config.token_layer})")
    return ", ".join(done)
