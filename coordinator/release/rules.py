"""What may be in a release: flat names, four kinds of file, declared sizes. Checked on publishing and on arrival."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from umbel.errors import DeployError

SUFFIXES = (".safetensors", ".json", ".md", ".toml")
MAX_FILES = 64
MAX_FILE_BYTES = 64 << 30
MAX_TEXT_BYTES = 16 << 20
MAX_VERSION = (1 << 53) - 1
"""JSON numbers are exact up to here."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9_-]{1,64}){0,7}")
RESERVED = frozenset({"manifest.json", "manifest.sig"})


def check_release_name(name: str) -> str:
    """``name``, if it can name a release.

    Raises:
        DeployError: it holds anything but lower-case letters, digits, dots, dashes and underscores, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise DeployError(
            f"{name[:80]!r} cannot name a release: use at most 63 lower-case letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit."
        )
    return name


def check_file_name(name: str) -> str:
    """``name``, if a release may hold a file of it: no folders, no hidden files, no pickles.

    Raises:
        DeployError: it may not.
    """
    if not _FILE.fullmatch(name) or name.lower() in RESERVED:
        raise DeployError(
            f"{name[:80]!r} cannot name a file of a release: use a plain name without folders, at most 64 characters "
            "between dots."
        )
    if not name.endswith(SUFFIXES):
        raise DeployError(
            f"{name!r} has no place in a release: only {', '.join(SUFFIXES)} files are released, and no pickle ever."
        )
    return name


def check_content(path: Path) -> None:
    """Reads a file as what its name says it is.

    Raises:
        DeployError: it is something else.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as tensors:
                if not list(tensors.keys()):
                    raise ValueError("it holds no tensor")
            return
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"it is larger than {MAX_TEXT_BYTES} bytes")
        text = path.read_bytes().decode("utf-8")
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".toml":
            tomllib.loads(text)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DeployError(
            f"{path.name} is not what its name says ({str(error)[:200]}): export the adapter again."
        ) from None
    except OSError as error:
        raise DeployError(f"{path.name} cannot be read ({error.strerror}): export the adapter again.") from None
