"""A sound manifest of a release, as JSON values."""

from __future__ import annotations

from typing import Any

MANIFEST: dict[str, Any] = {
    "format": 1,
    "name": "easy",
    "version": 1,
    "run": "one",
    "created": 1,
    "umbel": "0.1.0",
    "strategy": "fedit",
    "config": "a" * 64,
    "base": {"name": "demo", "hash": "b", "quantization": "nf4"},
    "adapter": "c",
    "values": 3,
    "privacy": {"epsilon": 8.0, "delta": 1e-5, "statement": "s", "aggregation": "a"},
    "files": [{"name": "adapter_config.json", "size": 3, "sha256": "d" * 64}],
}
