"""Numbers as people read them."""

from __future__ import annotations

import math

DASH = "–"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal: 0.9512 is ``95.1%``; None or NaN is a dash."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def signed(value: float | None) -> str:
    """Percentage points with their sign: 2.04 is ``+2.0``."""
    return DASH if value is None or not math.isfinite(value) else f"{value:+.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits: 0.12345 is ``0.123``; whole numbers keep their digits, with separators."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def size(count: float | None) -> str:
    """Bytes in binary units: 1536 is ``1.5 KiB``."""
    if count is None:
        return DASH
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float | None) -> str:
    """``3.4 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
