"""Virtual devices: how fast, how well connected and how often there the members of a fleet are.

Distributions are small and parametric. Those of phones are fitted to published traces: training latency to FLHetBench
(978 devices), network to FLASH (19 users), availability to the same; a session that is under way when a round begins
is drawn length-biased (the inspection paradox). Those of edge GPUs and hospitals are assumptions, not measurements.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from dataclasses import dataclass

import numpy as np

from umbel.errors import ConfigError

_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """One kind of device.

    Attributes:
        name: of the class.
        slowness: median seconds of a training step over those of the median phone.
        spread: sigma of the lognormal of slowness between devices.
        memory_gb: sizes of memory and their shares.
        down_mbps: median download in megabits a second, and sigma of its lognormal between devices.
        up_mbps: the same for upload.
        presence: alpha and beta of the Beta distribution of the share of time that a device is there.
        session_s: median and sigma of the lognormal of how long it stays, in seconds.
        gap_s: the same for how long it is away.
    """

    name: str
    slowness: float
    spread: float
    memory_gb: tuple[tuple[float, float], ...]
    down_mbps: tuple[float, float]
    up_mbps: tuple[float, float]
    presence: tuple[float, float]
    session_s: tuple[float, float]
    gap_s: tuple[float, float]


PHONE = DeviceClass(
    "phone",
    1.0,
    0.78,
    ((2, 0.1), (3, 0.2), (4, 0.4), (6, 0.2), (8, 0.1)),
    (4.3, 0.47),
    (3.3, 0.68),
    (0.54, 5.15),
    (181.0, 2.6),
    (476.0, 3.3),
)
EDGE_GPU = DeviceClass(
    "edge-gpu",
    0.1,
    0.3,
    ((8, 0.5), (16, 0.3), (32, 0.2)),
    (40.0, 0.4),
    (10.0, 0.4),
    (9.0, 1.0),
    (14_400.0, 1.0),
    (1_800.0, 1.0),
)
HOSPITAL = DeviceClass(
    "hospital",
    0.02,
    0.2,
    ((64, 0.5), (128, 0.5)),
    (200.0, 0.3),
    (100.0, 0.3),
    (50.0, 1.0),
    (86_400.0, 0.5),
    (600.0, 1.0),
)
FLEETS: dict[str, tuple[tuple[DeviceClass, float], ...]] = {
    "phones": ((PHONE, 1.0),),
    "edge-gpus": ((EDGE_GPU, 1.0),),
    "hospitals": ((HOSPITAL, 1.0),),
    "mixed": ((PHONE, 0.7), (EDGE_GPU, 0.25), (HOSPITAL, 0.05)),
}
"""Classes of a fleet and their shares."""

_JITTER = 0.03
"""Coefficient of variation of a step's time within one device (FLHetBench)."""
_NETWORK_JITTER = 0.4
"""Coefficient of variation of a user's own bandwidth (FLASH)."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a fleet, as drawn.

    Attributes:
        kind: name of its class.
        slowness: seconds of its step over the median phone's.
        memory_gb: its memory.
        down_mbps: its own median download.
        up_mbps: its own median upload.
        presence: share of time that it is there, 0 to 1.
        noon: seconds after midnight at which it is there most.
    """

    kind: DeviceClass
    slowness: float
    memory_gb: float
    down_mbps: float
    up_mbps: float
    presence: float
    noon: float

    def compute_seconds(self, steps: int, step_seconds: float, rng: np.random.Generator) -> float:
        """Seconds of ``steps`` steps that take the median phone ``step_seconds`` each."""
        return steps * step_seconds * self.slowness * _around(_JITTER, rng)

    def download_seconds(self, size: int, rng: np.random.Generator) -> float:
        """Seconds to receive ``size`` bytes."""
        return size * 8e-6 / (self.down_mbps * _around(_NETWORK_JITTER, rng))

    def upload_seconds(self, size: int, rng: np.random.Generator) -> float:
        """Seconds to send ``size`` bytes."""
        return size * 8e-6 / (self.up_mbps * _around(_NETWORK_JITTER, rng))

    def stay(self, now: float, rng: np.random.Generator) -> tuple[float, float]:
        """When the device can begin, counted from ``now``, and how long it then stays, both in seconds.

        Twice as often there at its noon as at its midnight. A session under way is length-biased and its rest uniform
        over it; none lasts more than a day.
        """
        daily = 1 + math.cos(2 * math.pi * (now - self.noon) / _DAY) / 3
        median, sigma = self.kind.session_s
        if rng.random() < min(1.0, self.presence * daily):
            whole = median * math.exp(sigma * sigma + sigma * rng.standard_normal())
            return 0.0, min(_DAY, whole) * rng.random()
        away, away_sigma = self.kind.gap_s
        wait = min(_DAY, away * math.exp(away_sigma * rng.standard_normal()))
        return wait, min(_DAY, median * math.exp(sigma * rng.standard_normal()))


def draw_fleet(name: str, size: int, seed: int) -> list[Device]:
    """``size`` devices of a named fleet; the same arguments give the same devices.

    Raises:
        ConfigError: there is no such fleet.
    """
    classes = fleet(name)
    rng = generator("fleet", seed, name)
    shares = np.array([share for _, share in classes])
    kinds = rng.choice(len(classes), size=size, p=shares / shares.sum())
    return [_draw(classes[kind][0], rng) for kind in kinds]


def fleet(name: str) -> tuple[tuple[DeviceClass, float], ...]:
    """The classes of a fleet. Raises ConfigError when there is no such fleet."""
    if name not in FLEETS:
        close = difflib.get_close_matches(name, FLEETS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(FLEETS)}."
        raise ConfigError(f"Fleet {name!r} is unknown: {hint}")
    return FLEETS[name]


def generator(*key: object) -> np.random.Generator:
    """A generator for one purpose, from SHA-256 over the key, so that no two purposes share their numbers."""
    digest = hashlib.sha256("\x00".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _draw(kind: DeviceClass, rng: np.random.Generator) -> Device:
    sizes = np.array([size for size, _ in kind.memory_gb])
    shares = np.array([share for _, share in kind.memory_gb])
    return Device(
        kind=kind,
        slowness=kind.slowness * math.exp(kind.spread * rng.standard_normal()),
        memory_gb=float(rng.choice(sizes, p=shares / shares.sum())),
        down_mbps=kind.down_mbps[0] * math.exp(kind.down_mbps[1] * rng.standard_normal()),
        up_mbps=kind.up_mbps[0] * math.exp(kind.up_mbps[1] * rng.standard_normal()),
        presence=float(rng.beta(*kind.presence)),
        noon=float(rng.random() * _DAY),
    )


def _around(variation: float, rng: np.random.Generator) -> float:
    """A lognormal factor of mean 1 with this coefficient of variation."""
    sigma = math.sqrt(math.log1p(variation * variation))
    return math.exp(sigma * rng.standard_normal() - sigma * sigma / 2)
