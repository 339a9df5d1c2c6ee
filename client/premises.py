"""Premises: what a site has of its own, whatever run it takes part in: name, keys, folders, data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from mllm.tasks.base import ExampleSet
from mllm.warm import warm_task
from privacy.secagg import Identity, Roster
from privacy.secagg.simulated import simulated_identity, simulated_name, simulated_roster
from umbel.config import RunConfig
from umbel.machine import derived
from umbel.paths import runs_root


class Premises(ABC):
    """One site in one run.

    Attributes:
        name: of the site; lasts over restarts and runs.
        run: under which the ledger and the sealed store know the run.
        view: the run's options as this site reads them: with its own paths of model and data, its own threads.
        folder: what the site keeps of this run; readable by it alone.
        ledger: the file that its releases are booked in.
        lasting: whether everything is kept in ``folder``, even what a simulation keeps with the run's messages.
    """

    name: str
    run: str
    view: RunConfig
    folder: Path
    ledger: Path
    lasting: bool

    @abstractmethod
    def identity(self) -> Identity:
        """The site's signing key."""

    @abstractmethod
    def roster(self) -> Roster:
        """The identities that the site trusts."""

    @abstractmethod
    def secret(self, purpose: str) -> bytes:
        """32 bytes for one purpose, always the same."""

    @abstractmethod
    def examples(self) -> ExampleSet:
        """The site's own data. Raises DataError when it cannot be read."""

    @abstractmethod
    def pool(self) -> ExampleSet:
        """Everybody's data, for the central comparison. Raises SiteError where there is no such thing."""

    @abstractmethod
    def dataset(self) -> str:
        """The ledger's id of the data: epsilon adds up under it over all runs."""


class SimulatedPremises(Premises):
    """One partition of the task's data, on a machine that plays every site from one secret.

    Args:
        config: of the run.
        index: which partition, from 0.
        run: id of the run.
    """

    lasting = False

    def __init__(self, config: RunConfig, index: int, run: str) -> None:
        self.name, self.run, self.view = simulated_name(index), run, config
        self._index = index
        self.folder = runs_root(config.run.directory) / run / "sites" / self.name
        self.ledger = self.folder / "ledger.sqlite"

    def identity(self) -> Identity:
        """See Premises."""
        return simulated_identity(self.name)

    def roster(self) -> Roster:
        """See Premises."""
        return simulated_roster(self.view.federation.clients)

    def secret(self, purpose: str) -> bytes:
        """See Premises."""
        return derived(purpose)

    def examples(self) -> ExampleSet:
        """See Premises."""
        return warm_task(self.view).client(self._index, self.view.federation.clients, self.view.run.seed)

    def pool(self) -> ExampleSet:
        """See Premises."""
        return warm_task(self.view).train

    def dataset(self) -> str:
        """See Premises."""
        return f"{warm_task(self.view).fingerprint[:16]}/{self.view.federation.clients}/{self.name}"
