"""Cached features of a frozen vision tower, in memory or sealed on disk: an image is encoded once, not every epoch.

Features are as private as the images they come from. In memory they live as long as the process. On disk they lie under
``UMBEL_HOME/features``, each sealed with AES-256-GCM by a key of this machine, bound to its name; the name is a keyed
hash of the image, so that not even its presence can be checked by somebody who has the image but not the key.

A tower that is frozen and has no dropout gives each image the same features whatever its neighbours are, so the cache
changes neither results (up to rounding) nor any guarantee.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import threading
from pathlib import Path
from typing import Any, Protocol

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from umbel.errors import ModelError
from umbel.files import write_atomic
from umbel.machine import derived
from umbel.paths import home

_NONCE = 12


class FeatureStore(Protocol):
    """Features by image key."""

    def get(self, key: bytes) -> Tensor | None:
        """What was put under the key, or None."""

    def put(self, key: bytes, value: Tensor) -> None:
        """Keeps a value, if there is room."""


class MemoryFeatures:
    """Features in this process, until a budget of bytes is spent; nothing is evicted."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: dict[bytes, Tensor] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> Tensor | None:
        """See FeatureStore."""
        return self._held.get(key)

    def put(self, key: bytes, value: Tensor) -> None:
        """See FeatureStore."""
        with self._lock:
            if key not in self._held and value.nbytes <= self._budget:
                self._budget -= value.nbytes
                self._held[key] = value.clone()  # a view would keep its whole batch alive


class SealedFeatures:
    """Features in a folder, one sealed file an image, at most ``budget`` bytes of them.

    A file that was altered or sealed elsewhere counts as missing and is written again.

    Args:
        folder: of one tower.
        key: 32 bytes.
        budget: bytes.
    """

    def __init__(self, folder: Path, key: bytes, budget: int) -> None:
        self._folder, self._key, self._cipher = folder, key, AESGCM(key)
        self._budget = budget - _bytes_in(folder)

    def _path(self, key: bytes) -> Path:
        return self._folder / hmac.new(self._key, key, hashlib.sha256).hexdigest()

    def get(self, key: bytes) -> Tensor | None:
        """See FeatureStore."""
        path = self._path(key)
        try:
            blob = path.read_bytes()
            plain = self._cipher.decrypt(blob[:_NONCE], blob[_NONCE:], path.name.encode())
            found: Tensor = load(plain)["features"]
            return found
        except (OSError, InvalidTag, ValueError, KeyError, SafetensorError):
            return None

    def put(self, key: bytes, value: Tensor) -> None:
        """See FeatureStore. Raises RunError when the folder cannot be written."""
        path, nonce = self._path(key), os.urandom(_NONCE)
        blob = nonce + self._cipher.encrypt(nonce, save({"features": value.contiguous()}), path.name.encode())
        if len(blob) <= self._budget:
            self._budget -= len(blob)
            write_atomic(path, blob, mode=0o600)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # another process may just be renaming it
            total += path.stat().st_size
    return total


def feature_store(kind: str, tower: str, megabytes: int) -> FeatureStore:
    """The store that ``model.feature-cache`` names.

    Args:
        kind: ``memory`` or ``disk``.
        tower: hash of everything that decides a feature (:func:`tower_hash`).
        megabytes: at most so many are kept.
    """
    if kind == "memory":
        return MemoryFeatures(megabytes << 20)
    return SealedFeatures(home() / "features" / tower[:32], derived("vision features"), megabytes << 20)


def tower_hash(base_hash: str, *how: object) -> str:
    """SHA-256, in hexadecimal, over the base's hash and how its tower is stored and read."""
    return hashlib.sha256("\x1f".join([base_hash, *map(str, how)]).encode()).hexdigest()


class CachedEncoder:
    """An encoder of the composed model that looks features up before it computes them.

    Attributes:
        hits, misses: images looked up so far.
    """

    def __init__(self, inner: Any, store: FeatureStore) -> None:
        self._inner, self._store = inner, store
        self.hits = self.misses = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks for these before there is an inner encoder
            raise AttributeError(name)
        return getattr(self._inner, name)

    def features(self, tower: Any, pixels: Tensor, layer: int) -> Tensor:
        """See Encoder: [images, tokens, width]; without gradient, for the tower is frozen.

        Raises:
            ModelError: the tower is being trained, or drops values at random.
        """
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ModelError("The vision tower is being trained, so its features cannot be cached: switch it off.")
        with torch.no_grad():
            keys = [_key(image, layer) for image in pixels]
            found = [self._store.get(key) for key in keys]
            lacking = [index for index, value in enumerate(found) if value is None]
            self.hits += len(keys) - len(lacking)
            self.misses += len(lacking)
            if lacking:
                # Training mode would let a tower drop values at random.
                was = tower.training
                tower.eval()
                made = self._inner.features(tower, pixels[lacking], layer)
                tower.train(was)
                for index, value in zip(lacking, made, strict=True):
                    found[index] = value
                    self._store.put(keys[index], value.cpu())
            shaped = [value.to(pixels.device) for value in found if value is not None]
            return torch.stack(shaped) if shaped else self._inner.features(tower, pixels, layer)


def attach_feature_cache(model: Any, store: FeatureStore) -> CachedEncoder:
    """Puts a cache before the vision tower of a composed model.

    Raises:
        ModelError: another model, whose tower is called in ways that are not known here.
    """
    if model.config.model_type != "umbel_vlm":
        raise ModelError(
            f"Features of {model.config.model_type!r} cannot be cached, composed models' can: set model.feature-cache "
            "to none."
        )
    cached = CachedEncoder(model._encoder, store)
    model._encoder = cached
    return cached


def _key(image: Tensor, layer: int) -> bytes:
    values = image.detach().cpu().contiguous()
    head = f"{values.dtype}{tuple(values.shape)}{layer}".encode()
    return hashlib.sha256(head + values.view(torch.uint8).numpy().tobytes()).digest()
