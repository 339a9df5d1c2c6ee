"""Calibrations kept on disk: hundreds of simulated devices in many processes ask for the same few noise multipliers."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from umbel.errors import RunError
from umbel.files import write_atomic
from umbel.paths import home

if TYPE_CHECKING:
    from privacy.plan.plan import PrivacyPlan


def calibrated(plan: PrivacyPlan) -> PrivacyPlan:
    """``plan.calibrated()``, from ``UMBEL_HOME/cache/calibrations`` where it was computed before.

    What was kept is not trusted: the plan's epsilon is computed at the kept multiplier, and one that does not keep
    the budget, or cannot be read, is computed anew. A folder that cannot be written costs time only.

    Raises:
        PlanError: no noise multiplier keeps the budget.
    """
    file = _file(plan)
    kept = _read(file)
    if kept is not None:
        candidate = replace(plan, noise_multiplier=kept)
        if candidate.epsilon() <= plan.epsilon_budget:
            return candidate
    fresh = plan.calibrated()
    with suppress(OSError, RunError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({"noise_multiplier": fresh.noise_multiplier}).encode())
    return fresh


def _file(plan: PrivacyPlan) -> Path:
    """Named by everything that a calibration depends on."""
    record = {name: value for name, value in plan.record().items() if name != "noise_multiplier"}
    body = json.dumps([record, repr(plan.encoding), metadata.version("dp-accounting")], sort_keys=True)
    return home() / "cache" / "calibrations" / f"{hashlib.sha256(body.encode()).hexdigest()}.json"


def _read(file: Path) -> float | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        value = float(json.loads(file.read_text())["noise_multiplier"])
        if math.isfinite(value) and value > 0:
            return value
    return None
