"""review: what a run would do at a site and cost it, for a person to read before they sign."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.agent.approval import Approval, Approvals
from client.agent.audit_log import AuditLog
from client.agent.bundle import Bundle, read_bundle
from client.agent.definition import RunDefinition
from client.agent.house import House
from client.agent.policy import SitePolicy
from client.agent.rules import begun_runs, columns, objections, place_of, too_long
from client.agent.site_premises import known_data, site_examples, site_view
from client.agent.video_lines import FIELD, has_videos
from client.batches import steps_for
from client.budget import example_plan, update_plan
from privacy.accounting import Event, epsilon, per_example
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.secagg.agreement import client_plan
from privacy.terms import Unit
from umbel.cli.options import flatten, parse_overrides
from umbel.config import RunConfig
from umbel.errors import ConfigError, SiteError, UmbelError

_APP = ("tool", "flwr", "app", "config")


@dataclass(frozen=True, slots=True)
class Review:
    """What a person reads: facts as (name, text), what the policy has against the run, what it allows unwisely."""

    facts: tuple[tuple[str, str], ...]
    objections: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def make_definition(
    house: House, run: Path, *, coordinator: str = "", bundle: Path | None = None, changes: Sequence[str] = ()
) -> RunDefinition:
    """The run definition in a TOML file: options by table or dotted name, or a Flower app's pyproject.toml.

    Raises:
        ConfigError: the file is not TOML, or an option is unknown, mistyped or cannot be combined.
        SiteError: the coordinator is not given and not the only one.
    """
    try:
        table = tomllib.loads(run.expanduser().read_text("utf-8"))
        inner: object = table
        for key in _APP:
            inner = inner.get(key) if isinstance(inner, dict) else None
        options = flatten(inner if isinstance(inner, dict) else table)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{run} cannot be read ({error}): give a TOML file with a run's options.") from None
    config = RunConfig.from_flat({**options, **parse_overrides(changes)})
    known = [c.name for c in house.policy.coordinators]
    if not coordinator:
        if len(known) != 1:
            raise SiteError(f"This site knows {len(known)} coordinators: say whose run it is with --coordinator NAME.")
        coordinator = known[0]
    return RunDefinition(coordinator, config, read_bundle(bundle) if bundle else Bundle())


def review_run(house: House, definition: RunDefinition) -> Review:
    """What the run would do here and cost. Reads the data to count examples; loads no model and spends nothing."""
    config = definition.config
    found = list(objections(house, definition, approved=False))
    facts = [
        ("definition", definition.hash),
        ("coordinator", definition.coordinator),
        ("bundle", _bundle(definition.bundle)),
        ("model", f"{config.model.reference}, stored as {config.model.quantization}"),
        ("trains", _trains(config)),
        ("leaves", _leaves(config)),
        ("repeats", _repeats(house, definition)),
    ]
    try:
        data = known_data(house, config)
        examples = len(site_examples(site_view(house, config), data))
        read = columns(data, config)
        if data.root and has_videos(house.place(data.root)):
            read = (*read, FIELD)
        if not any("number of local steps" in sentence for sentence in found):
            found += too_long(house.policy, config, examples)
        facts += [
            ("data", f"{data.name}: {examples} examples at this site, columns {', '.join(read)}"),
            (
                "rounds",
                f"at most {config.federation.rounds}, each of {steps_for(config.train, examples)} local steps on "
                f"batches of {config.train.batch_size}",
            ),
            *_cost(house, config, examples),
        ]
    except UmbelError as error:
        if not found:  # otherwise it only repeats what the policy says
            found.append(str(error))
    return Review(tuple(facts), tuple(found), tuple(_warnings(house.policy, config)))


def approve_run(house: House, definition: RunDefinition, person: str, days: float) -> Approval:
    """Signs that a definition may run here, in the log and as a file; see :meth:`Approvals.approve`."""
    identity = house.identity()
    approvals = Approvals(house.approvals, house.policy.name)
    begun = len(begun_runs(house).runs(definition.hash))
    log = AuditLog(house.log, identity)
    return approvals.approve(definition, identity, log, person=person, days=days, begun=begun)


def withdraw_run(house: House, definition: RunDefinition, person: str) -> None:
    """Takes an approval back; see :meth:`Approvals.withdraw`."""
    identity = house.identity()
    log = AuditLog(house.log, identity)
    Approvals(house.approvals, house.policy.name).withdraw(definition.hash, log, person=person)


def _bundle(bundle: Bundle) -> str:
    if not bundle.hash:
        return "none given: only bundles without code are covered"
    return f"{bundle.hash} {'with code' if bundle.code else 'without code'}"


def _trains(config: RunConfig) -> str:
    lora = config.lora
    if lora.method in ("prompt", "prefix"):
        what = f"{lora.tokens} soft tokens as a {lora.method}"
    elif lora.method == "ia3":
        what = f"IA3 scales on {lora.targets}"
    else:
        name = {"lora": "LoRA", "dora": "DoRA", "adapter": "adapters of"}[lora.method]
        what = f"{name} rank {lora.rank} on {lora.targets}"
    return f"{what} by {config.strategy.name}"


def _repeats(house: House, definition: RunDefinition) -> str:
    if house.policy.runs.repeat:
        return "may be run any number of times (runs.repeat)"
    known = begun_runs(house).runs(definition.hash)
    before = f"trained before as {', '.join(known)}; " if known else ""
    return f"{before}an approval lets it run once more, and that run be resumed"


def _warnings(policy: SitePolicy, config: RunConfig) -> Iterator[str]:
    if policy.runs.repeat and place_of(config) in ("none", "coordinator"):
        yield (
            "This site lets the definition be repeated without noise of its own: whoever runs it twice with different "
            "sites can subtract the two sums and see what a few of them sent; set runs.repeat=false, or take only "
            "runs with noise."
        )


def _leaves(config: RunConfig) -> str:
    what = "each round one masked vector, readable only in a sum" if config.secagg.enabled else "each round one update"
    if config.secagg.enabled:
        what += f" of at least {config.secagg.minimum} sites"
    if config.evaluate.clients:
        what += ", and counts of right answers on held-out examples"
    noise = {"none": "without noise", "step": "noised in every step", "update": "noised here"}
    return f"{what}, {noise.get(place_of(config), f'noised at {place_of(config)}')}"


def _cost(house: House, config: RunConfig, examples: int) -> list[tuple[str, str]]:
    plan = _plan(config, examples)
    if plan is None:
        return [("privacy", "no guarantee is accounted for at this site")]
    data = known_data(house, config)
    facts = [("privacy", plan.statement())]
    unit = Unit(config.privacy.unit)
    accounts = [(unit, "cost")]
    if unit is Unit.CLIENT:  # what hides a client is booked for each of its examples too
        accounts.append((Unit.EXAMPLE, "cost, example"))
    for account, label in accounts:
        spent, after = (epsilon(events, data.delta) for events in _events(house, data.name, plan, unit, account))
        facts.append(
            (
                label,
                f"epsilon {spent:.3f} is spent of {data.epsilon:g} at delta {data.delta:g}; after this run {after:.3f}"
                + ("" if after <= data.epsilon else ": it would be stopped before its end"),
            )
        )
    return facts


def _events(
    house: House, dataset: str, plan: PrivacyPlan, unit: Unit, account: Unit
) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """What an account counts before the run and after it."""
    if not house.ledger.exists():
        planned = tuple(plan.events())
        return (), planned if account is unit else per_example((), planned)
    with Ledger.open(house.ledger, create=False) as ledger:
        before = ledger.events(dataset=dataset, unit=account)
        return before, ledger.foreseen(plan.events(), dataset=dataset, unit=unit, account=account)


def _plan(config: RunConfig, examples: int) -> PrivacyPlan | None:
    place = place_of(config)
    if place == "step":
        return example_plan(config, examples)
    if place == "update":
        return update_plan(config)
    if place == "secagg" and config.secagg.enabled:
        return client_plan(config, config.federation.clients, 1 << 20)
    return None
