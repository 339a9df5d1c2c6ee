"""Flight: which clients of an asynchronous run are busy, with which version of the adapter; kept over restarts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from umbel.adapter import Vector
from umbel.errors import RunError
from umbel.files import write_atomic


@dataclass(frozen=True, slots=True)
class Version:
    """What was sent while one step was being gathered: the adapter and the strategy's extras."""

    adapter: Vector
    extras: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass
class Flight:
    """Busy clients in the order in which they were asked.

    Attributes:
        rounds: the round (1-based) whose adapter each busy site trains, by the site's name.
        versions: what was sent for those rounds.
    """

    rounds: dict[str, int] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)

    def start(self, site: str, number: int, version: Version) -> None:
        """Notes that a site was asked."""
        self.rounds[site] = number
        self.versions.setdefault(number, version)

    def land(self, site: str) -> int:
        """Notes that a site has answered; the round that it answers. Versions that nobody trains are forgotten."""
        number = self.rounds.pop(site)
        if number not in self.rounds.values():
            del self.versions[number]
        return number

    def save(self, folder: Path, after: int) -> None:
        """Writes who is busy after the step ``after``; call before that step's checkpoint.

        Raises:
            RunError: the folder cannot be written.
        """
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for number, version in self.versions.items():
            arrays[f"{number}/adapter"] = version.adapter
            arrays |= {f"{number}/extras/{name}": array for name, array in version.extras.items()}
        head = {"rounds": list(self.rounds.items())}
        plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_atomic(_path(folder, after), save(plain, metadata={"umbel": json.dumps(head)}))

    @staticmethod
    def forget(folder: Path, after: int) -> None:
        """Removes what belongs to other steps than ``after``; call after its checkpoint."""
        for path in folder.glob("flight-*.safetensors"):
            if path != _path(folder, after):
                path.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, after: int) -> Flight:
        """Who was busy after the step ``after``; nobody when that was not written.

        Raises:
            RunError: the file is damaged.
        """
        path = _path(folder, after)
        if not path.exists():
            return cls()
        try:
            with safe_open(path, framework="np") as stream:
                head = json.loads(stream.metadata()["umbel"])
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            rounds = {str(site): int(number) for site, number in head["rounds"]}
            versions = {number: _version(arrays, number) for number in set(rounds.values())}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}): delete it; its clients are then asked anew.") from None
        return cls(rounds, versions)


def _version(arrays: dict[str, npt.NDArray[np.float32]], number: int) -> Version:
    prefix = f"{number}/extras/"
    extras = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return Version(arrays[f"{number}/adapter"], extras)


def _path(folder: Path, after: int) -> Path:
    return folder / f"flight-{after}.safetensors"
