"""Finding a base's files: the demo base, a directory, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from umbel.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def resolve(name: str) -> Path:
    """The directory of the checkpoint that ``name`` stands for, downloaded if it is a hub id.

    Raises:
        ModelError: there is no such base, directory or repository, or it holds no safetensors weights.
    """
    path = _find(name)
    if not (path / "config.json").is_file():
        raise ModelError(f"{name} holds no config.json: expected a checkpoint as save_pretrained writes it.")
    if not any(path.glob("*.safetensors")):
        pickled = " (pickled weights are never loaded)" if any(path.glob("*.bin")) else ""
        raise ModelError(
            f"{name} holds no safetensors weights{pickled}: expected model.safetensors beside config.json."
        )
    return path


def _find(name: str) -> Path:
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    from mllm.bases import locate

    base = locate(name)
    if base is not None:
        return Path(base)
    from mllm.zoo import store

    found = store.locate(name, _find)
    if isinstance(found, Path):
        return found
    name = found or name
    if name == "demo":
        raise ModelError("The demo base has not been built: run `umbel base build demo` first.")
    if not _HUB_ID.fullmatch(name) or directory.is_file():
        raise ModelError(
            f"Model {name!r} is neither demo nor in the zoo (`umbel zoo` lists it) nor a directory nor a hub id such "
            "as 'owner/model'."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub client raises its own, requests' and OS errors
        raise ModelError(
            f"Model {name!r} can be neither downloaded nor found in the local cache ({type(error).__name__}): check "
            "its name and the connection, or give a directory."
        ) from None
