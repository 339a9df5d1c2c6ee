"""RunDefinition: what a site approves: a coordinator, a bundle, and every option that decides what a run does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from client.agent.bundle import Bundle
from umbel.canonical import canonical_json
from umbel.config import RunConfig

_FREE = frozenset({"run.id", "run.directory"})


@dataclass(frozen=True)
class RunDefinition:
    """What is the same every time a definition is run; the run's own name and folder are left out.

    Attributes:
        coordinator: as the site's policy names it.
        config: of the run.
        bundle: that carries it; one without code counts as none, since its options are compared in full.
    """

    coordinator: str
    config: RunConfig
    bundle: Bundle

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all of it, 64 hexadecimal digits."""
        return hashlib.sha256(b"umbel run definition\n" + canonical_json(self.body())).hexdigest()

    def body(self) -> dict[str, Any]:
        """What the hash covers, as JSON values."""
        options = {key: value for key, value in self.config.to_flat().items() if key not in _FREE}
        return {
            "coordinator": self.coordinator,
            "bundle": self.bundle.hash if self.bundle.code else "",
            "options": options,
        }
