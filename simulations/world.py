"""World: which of the devices asked would have answered, and when; decided before anything is trained.

Download, steps, upload and the rest of the session are drawn first, by seed, device, round and attempt. Only devices
that would have arrived are trained; the others answer at once with an error that says why, and the virtual clock
passes instead of the coordinator's patience. Nothing here depends on how fast the simulation runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simulations.clock import VirtualClock, VirtualRound
from simulations.devices import Device, generator
from umbel.wire import MessageType

_STAGES = (
    MessageType.TRAIN,
    MessageType.SECAGG_SHARE,
    MessageType.SECAGG_MASK,
    MessageType.SECAGG_CONFIRM,
    MessageType.SECAGG_UNMASK,
)
_OUTSIDE = "0"
"""The round of what the fleet has no part in: describing itself, and the central comparison."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message on its way: its id, the device's node id, message type, round and bytes."""

    id: str
    node: int
    kind: str
    group: str
    size: int


@dataclass(frozen=True, slots=True)
class WorldRules:
    """How a fleet is used.

    Attributes:
        step_seconds: of a training step on the median phone.
        steps: of a client in a round.
        deadline: virtual seconds after which a round no longer waits; 0 waits for everybody.
        over_selection: the round closes when 1/over_selection of the devices asked have arrived; at least 1.
        dropout: share of devices that break off in the middle of a round, at any stage alike.
        crash: share of devices whose training crashes.
        delay: share of devices that take ten times as long.
        twice: share of messages that are delivered twice.
        presence: whether devices come and go; without it every device is there all the time.
        overlapping: whether devices are asked while others train (FedBuff); replies then come in the clock's order.
        secure: whether updates leave as masked vectors, in five stages.
        up_ratio: bytes of an upload over those of the adapter.
        memory_gb: that training takes on a device; smaller ones refuse.
    """

    step_seconds: float = 0.172
    steps: int = 1
    deadline: float = 0.0
    over_selection: float = 1.0
    dropout: float = 0.0
    crash: float = 0.0
    delay: float = 0.0
    twice: float = 0.0
    presence: bool = False
    overlapping: bool = False
    secure: bool = False
    up_ratio: float = 1.0
    memory_gb: float = 0.0


class World:
    """A fleet on a virtual clock.

    Args:
        devices: device i has node id i + 1.
        rules: how they are used.
        seed: fixes everything that happens.
    """

    def __init__(self, devices: Sequence[Device], rules: WorldRules, seed: int) -> None:
        self._devices = devices
        self._rules = rules
        self._seed = seed
        self._attempts: dict[str, int] = {}
        self._adapter = 0
        self._leaves: dict[int, int] = {}
        self._due: dict[str, float] = {}
        self.clock = VirtualClock()
        self.on_change: Callable[[], None] | None = None
        """Called when the clock has run for messages sent together; where rounds overlap, once a round."""

    def play(self, sent: Sequence[Sent]) -> dict[str, str]:
        """Lets the clock pass for messages sent together; returns why a message gets no answer, by its id."""
        if not sent or sent[0].kind not in _STAGES or sent[0].group == _OUTSIDE:
            return {}
        new = not self.clock.stands_in(sent[0].group)
        current = self.clock.round(sent[0].group)
        current.bytes_down += sum(message.size for message in sent)
        if sent[0].kind != MessageType.TRAIN:
            lost = self._stage(sent, current)
        elif self._rules.overlapping:
            lost = self._overlap(sent, current)
        else:
            lost = self._train(sent, current)
        if self.on_change is not None and (new or not self._rules.overlapping):
            self.on_change()
        return lost

    def due(self) -> str | None:
        """The message whose reply comes next on the clock, where rounds overlap; None where they do not."""
        return min(self._due, key=self._due.__getitem__) if self._due else None  # of two, the one asked first

    def delivered(self, identifier: str) -> None:
        """Lets the clock pass until this reply came; does nothing for messages that it does not order."""
        at = self._due.pop(identifier, None)
        if at is not None:
            self.clock.advance(max(0.0, at - self.clock.now))

    def repeats(self, node: int, kind: str, group: str) -> bool:
        """Whether the reply of a node is delivered twice."""
        share = self._rules.twice
        return share > 0 and float(generator("twice", self._seed, node, kind, group).random()) < share

    def report(self) -> dict[str, Any]:
        """Virtual seconds and bytes, in all and round by round."""
        rounds = [asdict(line) for line in self.clock.rounds]
        return {
            "seconds": self.clock.now,
            "bytes_down": sum(line.bytes_down for line in self.clock.rounds),
            "bytes_up": sum(line.bytes_up for line in self.clock.rounds),
            "rounds": rounds,
        }

    def _train(self, sent: Sequence[Sent], current: VirtualRound) -> dict[str, str]:
        rules = self._rules
        attempt = self._attempts[current.round] = self._attempts.get(current.round, 0) + 1
        self._leaves.clear()
        self._adapter = max(message.size for message in sent)
        current.asked = len(sent)
        ends: dict[str, float] = {}
        lost: dict[str, str] = {}
        for message in sent:
            rng = generator("world", self._seed, message.node, message.group, attempt)
            end, reason = self._one(message, rng)
            if reason:
                lost[message.id] = reason
            else:
                ends[message.id] = end
        for key in [key for key, end in ends.items() if rules.deadline and end > rules.deadline]:
            lost[key] = "the device was later than the deadline"
            del ends[key]
        passed = rules.deadline if lost and rules.deadline else max(ends.values(), default=rules.deadline)
        wanted = math.ceil(len(sent) / rules.over_selection)
        if len(ends) >= wanted > 0 and rules.over_selection > 1:
            places = {message.id: message.node for message in sent}
            order = sorted(ends, key=lambda key: (ends[key], places[key]))
            passed = ends[order[wanted - 1]]
            lost |= dict.fromkeys(order[wanted:], "enough other devices were faster")
        self._count(sent, lost, current)
        current.arrived = len(sent) - len(lost)
        current.bytes_up += 0 if rules.secure else round(current.arrived * self._adapter * rules.up_ratio)
        self.clock.advance(passed)
        return lost

    def _overlap(self, sent: Sequence[Sent], current: VirtualRound) -> dict[str, str]:
        """Devices that begin now, each by itself; the clock passes when their replies are delivered."""
        lost: dict[str, str] = {}
        for message in sent:
            end, reason = self._one(message, generator("world", self._seed, message.node, message.group, 1))
            if reason:
                lost[message.id] = reason
            self._due[message.id] = self.clock.now + end
        self._count(sent, lost, current)
        arrived = len(sent) - len(lost)
        current.asked += len(sent)
        current.arrived += arrived
        current.bytes_up += round(arrived * max(message.size for message in sent) * self._rules.up_ratio)
        return lost

    def _one(self, message: Sent, rng: np.random.Generator) -> tuple[float, str]:
        """When a device would be done, counted from now, and why it would not."""
        rules, device = self._rules, self._devices[message.node - 1]
        # Everything is drawn in this order whatever happens, so that one rule does not move the numbers of another.
        wait, stays = device.stay(self.clock.now, rng)
        if not rules.presence:
            wait, stays = 0.0, float("inf")
        down = device.download_seconds(message.size, rng)
        compute = device.compute_seconds(rules.steps, rules.step_seconds, rng)
        upload = device.upload_seconds(0 if rules.secure else round(message.size * rules.up_ratio), rng)
        drops, stage, crashes, slow = rng.random(), rng.integers(len(_STAGES)), rng.random(), rng.random()
        if slow < rules.delay:
            compute *= 10.0
        if rules.memory_gb > device.memory_gb:
            return 0.0, "the device has too little memory"
        if drops < rules.dropout:
            if not rules.secure or stage == 0:
                return 0.0, "the device dropped out"
            self._leaves[message.node] = int(stage)
        if crashes < rules.crash:
            return 0.0, "the device crashed"
        needed = down + compute + upload
        if needed > stays:
            return 0.0, "the device left before it was done"
        return wait + needed, ""

    def _stage(self, sent: Sequence[Sent], current: VirtualRound) -> dict[str, str]:
        rules = self._rules
        stage = _STAGES.index(MessageType(sent[0].kind))
        lost: dict[str, str] = {}
        longest = 0.0
        up = round(self._adapter * rules.up_ratio) if sent[0].kind == MessageType.SECAGG_MASK else 0
        for message in sent:
            if self._leaves.get(message.node, len(_STAGES)) <= stage:
                lost[message.id] = "the device dropped out"
                continue
            device = self._devices[message.node - 1]
            rng = generator(
                "stage", self._seed, message.node, message.group, stage, self._attempts.get(message.group, 0)
            )
            longest = max(longest, device.download_seconds(message.size, rng) + device.upload_seconds(up, rng))
            current.bytes_up += up
        self._count(sent, lost, current)
        self.clock.advance(longest)
        return lost

    def _count(self, sent: Sequence[Sent], lost: dict[str, str], current: VirtualRound) -> None:
        for message in sent:
            reason = lost.get(message.id)
            if reason is not None:
                current.lost[reason] = current.lost.get(reason, 0) + 1
