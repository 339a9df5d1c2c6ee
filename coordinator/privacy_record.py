"""What the metrics say about privacy: what was promised at the start, what was spent after each round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.plan.statement import rounded_up
from privacy.terms import Unit
from umbel.config import RunConfig


class PrivacyRecord:
    """Reads ledgers; never counts by itself.

    At the example level every site keeps its own ledger, and in a simulation they lie in the run's folder. Where
    they do not, the record states the bound that every site enforces.

    Args:
        config: of the run.
        folder: of the run.
        plan: of the client unit, or None for the example unit and for no privacy.
    """

    def __init__(self, config: RunConfig, folder: Path, plan: PrivacyPlan | None) -> None:
        self._config = config
        self._folder = folder
        self._plan = plan

    def promised(self) -> dict[str, Any] | None:
        """For the start line; None without differential privacy."""
        privacy = self._config.privacy
        if privacy.unit == "none":
            return None
        return {**self._terms(), "epsilon": privacy.epsilon, "statement": self._promise()}

    def spent(self, rounds: int) -> dict[str, Any] | None:
        """After ``rounds`` finished rounds: the largest epsilon of any site, or the coordinator's own."""
        privacy = self._config.privacy
        if privacy.unit == "none":
            return None
        sites = self._sites()
        if sites:
            worst = max(sites.values())
            least, most = rounded_up(min(sites.values())), rounded_up(worst)
            between = f" By client: epsilon {least} to {most}, by its number of examples."
            statement = self._promise(worst) + (between if len(set(sites.values())) > 1 else "")
            return {**self._terms(), "epsilon": worst, "sites": sites, "statement": statement}
        if self._plan is not None:
            return {**self._terms(), "epsilon": self._plan.epsilon(rounds), "statement": self._plan.statement(rounds)}
        return {**self._terms(), "epsilon": privacy.epsilon, "statement": self._promise()}

    def _terms(self) -> dict[str, Any]:
        privacy = self._config.privacy
        return {
            "delta": privacy.delta,
            "unit": privacy.unit,
            "relation": privacy.relation,
            "sampler": privacy.sampler,
            "place": privacy.place,
        }

    def _promise(self, epsilon: float | None = None) -> str:
        privacy = self._config.privacy
        if self._plan is not None:
            return self._plan.statement()
        value = privacy.epsilon if epsilon is None else epsilon
        who = "one training example" if privacy.unit == "example" else "one client with all its data"
        how = "adding or removing" if privacy.relation == "add-remove" else "replacing"
        sampling = {
            "poisson": "assuming batches drawn by secret Poisson sampling",
            "fixed-size": "assuming batches of fixed size drawn secretly",
        }.get(privacy.sampler, "without amplification by sampling")
        bound = f"({rounded_up(value)}, {privacy.delta:g}) {privacy.unit}-level differential privacy"
        return (
            f"At every client at most {bound} for {how} {who}, {sampling}, against everyone outside the client; "
            "each client's number of examples is taken as public."
        )

    def _sites(self) -> dict[str, float]:
        """Epsilon by site, from the ledgers in the run's folder."""
        unit, found = Unit(self._config.privacy.unit), {}
        for path in sorted(self._folder.glob("sites/*/ledger.sqlite")):
            with Ledger.open(path, create=False) as ledger:
                spent = [
                    ledger.spent(self._config.privacy.delta, dataset=dataset, unit=unit)
                    for dataset, of in ledger.datasets()
                    if of is unit
                ]
            found[path.parent.name] = max(spent, default=0.0)
        return found
