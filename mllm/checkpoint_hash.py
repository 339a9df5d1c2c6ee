"""What identifies a checkpoint: its configuration and its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from umbel.errors import ModelError
from umbel.files import sha256_of


def checkpoint_hash(directory: Path) -> str:
    """SHA-256, in hexadecimal, over the name and content of the configuration and of every weight file.

    Covers ``config.json``, the index, and all ``*.safetensors`` files, in order of name. Files that neither
    shape nor hold weights do not count.

    Raises:
        ModelError: a file cannot be read.
    """
    names = sorted(
        path.name
        for path in directory.iterdir()
        if path.name == "config.json" or path.name.endswith((".safetensors", ".safetensors.index.json"))
    )
    total = hashlib.sha256()
    try:
        for name in names:
            total.update(json.dumps([name, sha256_of(directory / name)]).encode())
    except OSError as error:
        raise ModelError(f"{directory} cannot be read ({error.strerror}): check its permissions.") from None
    return total.hexdigest()
