"""Every decoder of bytes that come from the network or from somebody else's hands."""

from __future__ import annotations

from tests.fuzz import documents, messages, rounds
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (rounds, messages, documents) for target in module.targets()
}
