"""Rules: what the site's policy has against a run, an order, a moment; one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

from client.agent.approval import Approvals
from client.agent.begun import Begun
from client.agent.definition import RunDefinition
from client.agent.house import House
from client.agent.policy import Data, SitePolicy
from client.batches import steps_for
from umbel.config import RunConfig
from umbel.errors import SiteError, UmbelError
from umbel.wire import TrainOrder, read_secure_order

_READ = ("image", "question", "answer")


def objections(house: House, definition: RunDefinition, *, approved: bool = True, run: str = "") -> tuple[str, ...]:
    """Everything that speaks against a run at this site; empty when it may train.

    Args:
        house: of the site.
        definition: of the run.
        approved: whether an approval must be there already where the policy wants one.
        run: id of the run; "" where it is not known yet.
    """
    policy, config = house.policy, definition.config
    found = [
        *_carried(policy, definition),
        *_model(policy, config),
        *_data(policy, config),
        *_size(policy, config),
        *_privacy(policy, config),
        *_cohort(policy, config),
    ]
    if approved and policy.runs.approval == "each":
        try:
            Approvals(house.approvals, policy.name).find(definition, house.identity().public)
        except UmbelError as error:
            found.append(str(error))
    if run:
        found.extend(_repeated(house, definition, run))
    return tuple(found)


def check_run(house: House, definition: RunDefinition, run: str) -> None:
    """Raises SiteError with the first objection."""
    for sentence in objections(house, definition, run=run):
        raise SiteError(sentence)


def run_id(definition: RunDefinition, stated: str) -> str:
    """The id under which a run is resumed: its own name; where it has none, the id that the courier states."""
    named = definition.config.run.id
    return stated if named == "auto" else named


def begin_run(house: House, definition: RunDefinition, run: str) -> None:
    """Remembers, before anything is trained, that a definition is trained in this run.

    Raises:
        SiteError: it may not be repeated; asked again here, because another run may have begun since the first check.
        RunError: it cannot be written down.
    """
    for sentence in _repeated(house, definition, run):
        raise SiteError(sentence)
    begun_runs(house).note(definition.hash, run)


def begun_runs(house: House) -> Begun:
    """Which runs were trained at this site."""
    return Begun(house.state / "begun")


def check_hours(policy: SitePolicy, now: datetime | None = None) -> None:
    """Raises SiteError outside the site's hours."""
    now = now or datetime.now(UTC)
    if not policy.hours.admit(now):
        hours = policy.hours
        raise SiteError(
            f"Site {policy.name!r} trains only on {', '.join(hours.days)} from {hours.start:%H:%M} to "
            f"{hours.end:%H:%M} ({hours.zone}): ask again then."
        )


def check_order(policy: SitePolicy, config: RunConfig, order: TrainOrder, examples: int) -> None:
    """What an order may say beyond its run.

    Raises:
        SiteError: pooled data, another number of steps, more steps or rounds than allowed, too small a cohort, or a
            plain update where masks are required.
        WireError: the secure order cannot be read.
    """
    if order.pooled:
        raise SiteError("Everybody's data was asked for, but this site has its own only: leave evaluate.central off.")
    if order.amount > 0:
        raise SiteError(
            f"An order wants {order.amount} steps instead of the approved train.amount {config.train.amount}: leave "
            "the amount out."
        )
    if not 1 <= order.round <= config.federation.rounds:
        raise SiteError(f"Round {order.round} was asked for, but the run has {config.federation.rounds}.")
    for sentence in too_long(policy, config, examples):
        raise SiteError(sentence)
    if order.secagg is None:
        if config.secagg.enabled or policy.runs.secure_aggregation:
            raise SiteError("A plain update was asked for, but this site sends masked ones only: nothing was sent.")
        return
    cohort = read_secure_order(order.secagg)[1]
    if cohort < policy.runs.cohort:
        raise SiteError(
            f"A cohort of {cohort} was invited and this site takes part among at least {policy.runs.cohort}: invite "
            "more sites."
        )


def too_long(policy: SitePolicy, config: RunConfig, examples: int) -> Iterator[str]:
    """What speaks against the length of a round on so many examples; epochs count as the steps that they are."""
    steps = steps_for(config.train, examples)
    if steps > policy.runs.steps:
        yield (
            f"A round would take {steps} local steps and this site allows {policy.runs.steps}: lower train.amount, or "
            "let its owner raise runs.steps."
        )


def _repeated(house: House, definition: RunDefinition, run: str) -> Iterator[str]:
    if house.policy.runs.repeat:
        return
    try:
        known = begun_runs(house).runs(definition.hash)
    except SiteError as error:
        yield str(error)
        return
    try:
        allowed = Approvals(house.approvals, house.policy.name).find(definition, house.identity().public).runs
    except UmbelError:
        allowed = 1  # the policy may want no approval; one that it wants and misses is an objection of its own
    if run not in known and len(known) >= allowed:
        yield (
            f"The run definition {definition.hash[:16]} was trained here as run {known[-1]!r}, and run {run!r} would "
            "repeat it: resume that run, or let a person at the site approve the definition anew with umbel site "
            "review --approve, or set runs.repeat=true in site.toml."
        )


def _carried(policy: SitePolicy, definition: RunDefinition) -> Iterator[str]:
    bundle, name = definition.bundle, definition.coordinator
    if name not in {c.name for c in policy.coordinators}:
        yield f"Coordinator {name!r} is not known to this site: its owner can add it to site.toml."
    if bundle.code and bundle.hash not in policy.bundles:
        yield (
            f"The bundle {bundle.hash[:16] or 'without a hash'} carries code that this site has not approved: send a "
            "bundle without code, or let the site's owner add its hash to bundles in site.toml."
        )


def _model(policy: SitePolicy, config: RunConfig) -> Iterator[str]:
    wanted = [config.model.reference] + ([config.train.teacher] if config.train.teacher != "none" else [])
    for name in wanted:
        if policy.model(name) is None:
            yield f"The model {name!r} is not allowed at this site: its owner can add it to site.toml."


def _data(policy: SitePolicy, config: RunConfig) -> Iterator[str]:
    data = policy.dataset(config.task.data)
    if data is None or data.task != config.task.name:
        yield (
            f"The data {config.task.data!r} of task {config.task.name} is not offered by this site: name a data set of "
            "its site.toml as task.data."
        )
        return
    missing = [column for column in columns(data, config) if column not in data.columns]
    if missing:
        yield (
            f"The run would read the column {missing[0]!r} of {data.name!r}, which this site does not allow: choose "
            "another task or partition, or let its owner add the column."
        )


def columns(data: Data, config: RunConfig) -> tuple[str, ...]:
    """The fields of a line that a run would read."""
    if data.part == "all" or config.task.partition in ("iid", "dirichlet"):
        return _READ
    return (*_READ, config.task.key if config.task.partition == "natural" else "type")


def _size(policy: SitePolicy, config: RunConfig) -> Iterator[str]:
    rules, strategy = policy.runs, config.strategy.name
    if strategy not in rules.strategies:
        yield f"The strategy {strategy!r} is not allowed at this site: its owner can add it to runs.strategies."
    for what, wanted, most, option in (
        ("LoRA rank", site_rank(policy, config) or config.lora.rank, rules.rank, "lora.rank"),
        ("number of rounds", config.federation.rounds, rules.rounds, "federation.rounds"),
        # An epoch is one step at least; how many it is here is known once the examples are counted (too_long).
        ("number of local steps", config.train.amount, rules.steps, "train.amount"),
    ):
        if wanted > most:
            yield f"The {what} {wanted} is above the {most} that this site allows: lower {option}."
    if config.evaluate.clients and not rules.evaluate:
        yield "Counts of this site's own examples would leave it, which it does not allow: set evaluate.clients=false."


def site_rank(policy: SitePolicy, config: RunConfig) -> int | None:
    """The rank of a site in a run that lets sites differ: as high as its policy allows; None where all are alike."""
    if config.strategy.ranks != "mixed" or policy.runs.rank < 1:
        return None
    return min(config.lora.rank, policy.runs.rank)


def place_of(config: RunConfig) -> Literal["step", "update", "secagg", "coordinator", "none"]:
    """Where a run adds noise; ``none`` where it adds none."""
    return "none" if config.privacy.unit == "none" else config.privacy.place


def _privacy(policy: SitePolicy, config: RunConfig) -> Iterator[str]:
    place = place_of(config)
    if place not in policy.runs.privacy:
        what = "no noise" if place == "none" else f"its noise at {place!r}"
        yield f"The run adds {what}, and this site wants it at one of {list(policy.runs.privacy)}: set privacy.place."
    data = policy.dataset(config.task.data)
    if data is None or place in ("none", "coordinator"):
        # The owner has allowed that nothing is accounted here; a budget then says the opposite.
        if data is not None and data.epsilon > 0:
            what = "a run without noise" if place == "none" else "noise that the coordinator adds"
            yield (
                f"The data {data.name!r} has a budget, and {what} cannot be booked under it: set privacy.unit and "
                "privacy.place so that noise is added here, or name data without a budget."
            )
        return
    if data.epsilon <= 0:
        yield f"The data {data.name!r} has no privacy budget at this site: its owner can set epsilon in site.toml."
    elif config.privacy.delta > data.delta:
        yield (
            f"The run states its guarantee at delta {config.privacy.delta:g} and this site at {data.delta:g}: lower "
            "privacy.delta."
        )


def _cohort(policy: SitePolicy, config: RunConfig) -> Iterator[str]:
    rules, secagg = policy.runs, config.secagg
    if rules.secure_aggregation and not secagg.enabled:
        yield "Updates would leave this site unmasked, which it does not allow: set secagg.enabled=true."
    smallest = secagg.minimum if secagg.enabled else config.federation.minimum
    if smallest < rules.cohort:
        option = "secagg.minimum" if secagg.enabled else "federation.minimum"
        yield f"A sum of {smallest} sites would count, and this site wants at least {rules.cohort}: raise {option}."
    if secagg.enabled and secagg.corrupt < rules.corrupt:
        yield (
            f"Masks would withstand {secagg.corrupt:g} of colluding sites, and this site wants {rules.corrupt:g}: "
            "raise secagg.corrupt."
        )
