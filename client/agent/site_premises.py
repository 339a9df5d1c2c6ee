"""SitePremises: a real site's own name, keys, folders and data, for one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.agent.house import House
from client.agent.policy import Data
from client.agent.video_lines import FIELD, has_videos
from client.premises import Premises
from mllm.tasks.base import ExampleSet
from mllm.warm import warm_task
from privacy.secagg import Identity, Roster
from umbel.config import RunConfig
from umbel.errors import DataError, SiteError


class SitePremises(Premises):
    """What the house has for a run that its policy allows.

    Args:
        house: of the site.
        config: of the run.
        coordinator: whose run it is.
        run: id of the run; two coordinators may use the same.

    Raises:
        SiteError: the policy knows no such model or data set.
    """

    lasting = True

    def __init__(self, house: House, config: RunConfig, coordinator: str, run: str) -> None:
        self._house = house
        self._data = known_data(house, config)
        self.name = house.policy.name
        self.run = f"{coordinator}/{run}"
        self.view = site_view(house, config)
        self.folder = house.run(coordinator, run)
        self.ledger = house.ledger

    def identity(self) -> Identity:
        """See Premises."""
        return self._house.identity()

    def roster(self) -> Roster:
        """See Premises."""
        return self._house.roster()

    def secret(self, purpose: str) -> bytes:
        """See Premises."""
        return self._house.secret(purpose)

    def examples(self) -> ExampleSet:
        """See Premises."""
        return site_examples(self.view, self._data)

    def pool(self) -> ExampleSet:
        """See Premises."""
        raise SiteError("Everybody's data was asked for, but this site has its own only: leave evaluate.central off.")

    def dataset(self) -> str:
        """See Premises. The name that the site's owner gave it: new examples do not make a new budget."""
        return self._data.name


def known_data(house: House, config: RunConfig) -> Data:
    """The data set that a run names. Raises SiteError when the policy has none of that name and task."""
    data = house.policy.dataset(config.task.data)
    if data is None or data.task != config.task.name:
        known = ", ".join(repr(d.name) for d in house.policy.data) or "none"
        raise SiteError(
            f"The run asks for the data {config.task.data!r} of task {config.task.name}, and this site allows {known}: "
            "name one of them as task.data, or let the site's owner add it to site.toml."
        )
    return data


def site_view(house: House, config: RunConfig) -> RunConfig:
    """The run's options with the site's own paths and threads."""
    data = known_data(house, config)
    threads = min(config.train.threads, house.policy.limits.threads or config.train.threads)
    model: dict[str, Any] = {}
    if place := known_model(house, config.model.reference):
        model = {"name": place, "size": "full", "weights": "published"}
    train: dict[str, Any] = {"threads": threads}
    if config.train.teacher != "none":
        train["teacher"] = known_model(house, config.train.teacher) or config.train.teacher
    changes: Mapping[str, Any] = {
        "model": config.model.model_copy(update=model),
        "task": config.task.model_copy(update={"data": str(house.place(data.root))} if data.root else {}),
        "train": config.train.model_copy(update=train),
    }
    return config.model_copy(update=changes)


def known_model(house: House, name: str) -> str:
    """Where a model lies at this site; "" where its name says so. Raises SiteError when the policy has none such."""
    model = house.policy.model(name)
    if model is None:
        known = ", ".join(repr(m.name) for m in house.policy.models) or "none"
        raise SiteError(f"The run asks for the model {name!r}, and this site allows {known}: add it to its site.toml.")
    return str(house.place(model.path)) if model.path else ""


def site_examples(view: RunConfig, data: Data) -> ExampleSet:
    """The site's examples of a data set, under the run's division where the site has a part only.

    Raises:
        SiteError: a line has a video, and the policy does not allow that column.
        DataError: there are fewer than task.minimum, there is no such part, or the data cannot be read.
    """
    if data.root and FIELD not in data.columns and has_videos(Path(view.task.data)):
        raise SiteError(
            f"The run would read the column {FIELD!r} of {data.name!r}, which this site does not allow: its owner can "
            "add the column in site.toml, or take the lines with videos out."
        )
    task, clients = warm_task(view), view.federation.clients
    if data.part == "all":
        if len(task.train) < view.task.minimum:
            raise DataError(
                f"The data {data.name!r} holds {len(task.train)} examples and task.minimum is {view.task.minimum}: "
                "lower it or add data."
            )
        return task.train
    if data.part >= clients:
        raise DataError(
            f"This site has part {data.part} of {data.name!r}, but the run divides it among {clients} only."
        )
    return task.client(data.part, clients, view.run.seed)
