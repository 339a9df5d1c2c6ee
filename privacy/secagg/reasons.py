"""Why a message of the protocol was refused: one closed list of words."""

from __future__ import annotations

from enum import StrEnum

from umbel.errors import ProtocolViolation


class Reason(StrEnum):
    """The named reasons of :class:`umbel.errors.ProtocolViolation`."""

    MALFORMED = "malformed"
    """Unparseable, truncated, too long, or of the wrong type."""
    OVERSIZED = "oversized"
    """More bytes or entries than the cohort allows."""
    ORDER = "order"
    """A step out of order, or one that was already taken."""
    REPEATED = "repeated"
    """The same step of the same context a second time: answering twice could reveal an input."""
    CONTEXT = "context"
    """Another run, round, attempt, adapter, configuration or encoding."""
    FOREIGN = "foreign"
    """Meant for somebody else, or from somebody who is not in the roster, the list or the neighbourhood."""
    DUPLICATE = "duplicate"
    """An id or a key stands twice."""
    SIGNATURE = "signature"
    """A signature does not verify."""
    KEY = "key"
    """A public key is unusable (a point of low order), or one's own entry was changed."""
    CIPHERTEXT = "ciphertext"
    """An encrypted pair of shares was altered, replayed or moved."""
    COHORT = "cohort"
    """Fewer members than the site demands."""
    SURVIVORS = "survivors"
    """The set of survivors is not a subset of those who shared, lacks this client, or changed."""
    SHARE = "share"
    """A revealed share is missing, out of range or not the one asked for."""


def violation(reason: Reason, sentence: str) -> ProtocolViolation:
    """The exception for ``reason``; raise what this returns."""
    return ProtocolViolation(sentence, reason)
