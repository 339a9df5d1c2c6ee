"""The virtual clock: what a fleet's rounds would have taken, apart from how long their simulation took."""

from __future__ import annotations

from dataclasses import dataclass, field

from umbel.errors import ConfigError


@dataclass
class VirtualRound:
    """One round on the virtual clock.

    Attributes:
        round: the coordinator's name of it.
        started: virtual seconds since the run began.
        seconds: that it took.
        asked: devices that were asked to train.
        arrived: devices whose training arrived in time.
        lost: the others, by reason.
        bytes_down: sent to devices, whether or not they answered.
        bytes_up: sent by devices, estimated from the size of the adapter.
    """

    round: str
    started: float
    seconds: float = 0.0
    asked: int = 0
    arrived: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


class VirtualClock:
    """Virtual seconds since the beginning of a run; it only goes forward."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self.rounds: list[VirtualRound] = []

    @property
    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self._now

    def stands_in(self, name: str) -> bool:
        """Whether the round of this name is the current one."""
        return bool(self.rounds) and self.rounds[-1].round == name

    def round(self, name: str) -> VirtualRound:
        """The round of this name, begun now if it is new."""
        if not self.stands_in(name):
            self.rounds.append(VirtualRound(name, self._now))
        return self.rounds[-1]

    def resume(self, rounds: list[VirtualRound]) -> None:
        """Takes up the rounds of an earlier process; the clock stands at their end."""
        self.rounds = list(rounds)
        self._now = rounds[-1].started + rounds[-1].seconds if rounds else 0.0

    def advance(self, seconds: float) -> None:
        """Lets ``seconds`` pass, in the current round if there is one.

        Raises:
            ConfigError: they are negative or not finite.
        """
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"The virtual clock cannot pass {seconds} seconds: expected a finite number from 0 up.")
        self._now += seconds
        if self.rounds:
            self.rounds[-1].seconds += seconds
