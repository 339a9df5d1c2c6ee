"""Canonical JSON: equal values give equal bytes, to be hashed or signed."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """JSON in one form only: keys sorted, no spaces, ASCII, finite numbers.

    Raises:
        TypeError, ValueError, RecursionError: the value has no JSON form, or holds NaN or an infinity. Callers say in
            a sentence of their own what that means for them.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
