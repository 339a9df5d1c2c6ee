"""What cannot work, one sentence each, and what works with a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from strategies.base import AdapterStrategy
from strategies.registry import STRATEGIES
from strategies.robust.robust import RULES
from umbel.config import RunConfig

PADDABLE = frozenset({"fedit", "ffa-lora", "rolora", "fedsvd", "fedsa-lora"})
"""Linear methods that :class:`strategies.zero_padded.ZeroPadded` opens to mixed ranks."""

_Rule = Callable[[RunConfig, type[AdapterStrategy]], str | None]


def expected_cohort(config: RunConfig) -> int:
    """Clients of a round, expected."""
    federation = config.federation
    return federation.clients if federation.cohort == "all" else federation.cohort_size


def is_private(config: RunConfig) -> bool:
    """Whether any differential privacy is promised."""
    return config.privacy.unit != "none"


def is_secure(config: RunConfig) -> bool:
    """Whether only sums are visible."""
    return config.secagg.enabled or (is_private(config) and config.privacy.place == "secagg")


def _linear_under_secagg(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if is_secure(config) and not method.facts.linear:
        return (
            f"Strategy {method.name!r} needs every client's own factors, which secure aggregation hides: choose a "
            "linear method such as ffa-lora or fedask, or switch secagg.enabled off."
        )
    return None


def _linear_under_summed_noise(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if is_private(config) and config.privacy.place == "coordinator" and not method.facts.linear:
        return (
            f"Strategy {method.name!r} does not use the sum of updates that a trusted coordinator adds its noise to: "
            "choose a linear method such as ffa-lora, or privacy.place step."
        )
    return None


def _stacking_with_noise(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if is_private(config) and method.name == "flora":
        return (
            "FLoRA stacks noisy factors, so each client's A noise is multiplied by its B noise and nothing averages "
            "out: choose ffa-lora, fedsvd, fed-sb or fedask under differential privacy."
        )
    return None


def _two_passes_with_noise(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if is_private(config) and method.passes > 1 and config.privacy.place != "step":
        return (
            f"Strategy {method.name!r} releases two sketches of one update each round, but noise at the "
            f"{config.privacy.place} is booked once: set privacy.place to step, or choose ffa-lora or fedsvd."
        )
    return None


def _mixed_ranks(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if config.strategy.ranks == "mixed" and not method.facts.heterogeneous_ranks and method.name not in PADDABLE:
        able = sorted({n for n, cls in STRATEGIES.items() if cls.facts.heterogeneous_ranks} | PADDABLE)
        return (
            f"Strategy {method.name!r} cannot average clients of different ranks: choose one of {', '.join(able)}, or "
            "strategy.ranks same."
        )
    return None


def _robust_under_secagg(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    chosen = config.strategy
    if chosen.robust != "none" and is_secure(config) and not chosen.groups:
        return (
            f"{chosen.robust.capitalize()} compares single updates, which secure aggregation hides: set "
            "strategy.groups to compare the sums of random groups, or switch secagg.enabled off."
        )
    return None


def _robust_needs_mean(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    chosen = config.strategy
    if chosen.robust == "none":
        if chosen.groups:
            return "Groups serve a robust rule and none is chosen: set strategy.robust, or strategy.groups to 0."
        return None
    if not method.facts.linear or method.passes > 1:
        return (
            f"Strategy {method.name!r} does not work on one mean that {chosen.robust} could replace: choose a linear "
            "method such as fedit or ffa-lora."
        )
    if is_private(config) and config.privacy.place == "coordinator" and not chosen.groups:
        return (
            f"{chosen.robust.capitalize()} replaces the sum of updates that a trusted coordinator adds its noise to: "
            "set strategy.robust to none, or privacy.place to step or update."
        )
    if chosen.parts or chosen.ranks == "mixed":
        return (
            f"{chosen.robust.capitalize()} compares whole updates, and clients that lack parts or ranks would look "
            "corrupt: set strategy.parts to false and strategy.ranks to same."
        )
    return None


def _group_sizes(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    groups, cohort = config.strategy.groups, expected_cohort(config)
    least = config.secagg.minimum if is_secure(config) else 1
    if groups and cohort < groups * least:
        return (
            f"A cohort of {cohort} cannot form {groups} groups of at least {least}: lower strategy.groups or raise "
            "the cohort."
        )
    if groups and config.federation.cohort == "poisson":
        return (
            "A Poisson cohort may be too small to be divided into groups: set federation.cohort to all or fixed, or "
            "strategy.groups to 0."
        )
    if groups and is_private(config) and config.privacy.place in ("coordinator", "secagg"):
        return (
            "Group sums would each need the whole round's noise, which the privacy plan does not book: choose "
            "privacy.place step or update with robust groups."
        )
    return None


def _server_optimizer(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    rule = config.strategy.server_optimizer
    if rule != "none" and not (method.facts.linear and method.facts.fixed_basis):
        return (
            f"Strategy {method.name!r} has no mean difference in fixed coordinates for {rule} to work on: choose "
            "fedit, ffa-lora, rolora, fedsa-lora, fed-sb or feddpa, or strategy.server-optimizer none."
        )
    return None


def _scaffold(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    chosen = config.strategy
    if chosen.regulariser != "scaffold":
        return None
    if method.name not in ("fedit", "ffa-lora", "fedsa-lora") or chosen.ranks == "mixed":
        return (
            f"SCAFFOLD needs the same trained coordinates in every round, which {method.name!r} with "
            f"{chosen.ranks} ranks does not give: choose fedit, ffa-lora or fedsa-lora with strategy.ranks same."
        )
    if config.train.optimizer != "sgd" or config.train.momentum:
        return (
            "SCAFFOLD derives its control variates from plain SGD steps: set train.optimizer to sgd and "
            "train.momentum to 0."
        )
    if chosen.robust != "none":
        return "A robust rule would judge control variates as updates: choose SCAFFOLD or strategy.robust, not both."
    return None


def _compression(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    chosen = config.strategy
    if chosen.compression == "none":
        if chosen.error_feedback:
            return "Error feedback has no compression to correct: set strategy.compression, or error-feedback to false."
        return None
    if not method.facts.linear or method.passes > 1:
        return (
            f"Strategy {method.name!r} multiplies uploads, so compression errors would not average out: choose a "
            "linear method with one pass, or strategy.compression none."
        )
    if chosen.compression.endswith("quantize") and is_secure(config):
        return (
            "Secure aggregation rounds values itself and cannot add quantized ones: set secagg.bits instead of "
            f"strategy.compression {chosen.compression}."
        )
    if chosen.error_feedback and (not method.facts.fixed_basis or method.name in ("rolora", "flasc")):
        return (
            f"Strategy {method.name!r} uploads other coordinates in every round, to which no fed-back error belongs: "
            "set strategy.error-feedback to false, or choose fedit or ffa-lora."
        )
    if chosen.robust not in ("none", "norm-bound") and chosen.error_feedback:
        return (
            "A robust rule takes a client's fed-back errors for an attack: set strategy.error-feedback to false or "
            "strategy.robust to norm-bound."
        )
    return None


def _parts(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if not config.strategy.parts:
        return None
    if not method.facts.linear or method.passes > 1:
        return (
            f"Strategy {method.name!r} does not average parts one by one: choose a linear method with one pass, or "
            "strategy.parts false."
        )
    if is_private(config) or config.train.weight_decay > 0:
        return (
            "Part weights tell untrained parts by an exact zero, which noise and weight decay destroy: set "
            "privacy.unit to none and train.weight-decay to 0, or strategy.parts to false."
        )
    return None


def _buffer(config: RunConfig, method: type[AdapterStrategy]) -> str | None:
    if not config.strategy.buffer:
        return None
    if not (method.facts.linear and method.facts.fixed_basis) or method.name == "rolora":
        return (
            f"Strategy {method.name!r} cannot take updates that were trained on an older adapter: choose fedit, "
            "ffa-lora or fed-sb, or strategy.buffer 0."
        )
    if is_secure(config) or config.strategy.compression.startswith(("sparsify", "sketch")):
        return (
            "Asynchronous updates share no round, so they cannot be masked or compressed with a round's common seed: "
            "switch secagg.enabled and strategy.compression off, or set strategy.buffer to 0."
        )
    if config.strategy.robust != "none" or config.strategy.regulariser == "scaffold":
        what = "A robust rule" if config.strategy.robust != "none" else "SCAFFOLD"
        return (
            f"{what} compares updates of one and the same adapter, which asynchronous ones are not: set "
            "strategy.robust and strategy.regulariser to none, or strategy.buffer to 0."
        )
    if config.strategy.ranks == "mixed":
        return (
            "Asynchronous updates are averaged as vectors of one length: set strategy.ranks to same, or "
            "strategy.buffer to 0."
        )
    if config.federation.cohort == "poisson":
        return (
            "An asynchronous run keeps a fixed number of clients busy, which a Poisson cohort is not: set "
            "federation.cohort to all or fixed."
        )
    if not config.federation.minimum <= config.strategy.buffer <= config.federation.clients:
        return (
            f"A buffer of {config.strategy.buffer} uploads is below federation.minimum or above "
            f"federation.clients, and a client counts once a step: choose {config.federation.minimum} to "
            f"{config.federation.clients}."
        )
    if config.privacy.unit == "client":
        return (
            "Client-level privacy needs cohorts drawn by the plan, and asynchronous clients come when they like: "
            "choose privacy.unit example or strategy.buffer 0."
        )
    return None


_RULES: tuple[_Rule, ...] = (
    _linear_under_secagg,
    _stacking_with_noise,
    _linear_under_summed_noise,
    _two_passes_with_noise,
    _mixed_ranks,
    _robust_under_secagg,
    _robust_needs_mean,
    _group_sizes,
    _server_optimizer,
    _scaffold,
    _compression,
    _parts,
    _buffer,
)


def refusals(config: RunConfig, method: type[AdapterStrategy]) -> Iterator[str]:
    """Every reason why the combination cannot work, the most important first; none when it can."""
    for rule in _RULES:
        sentence = rule(config, method)
        if sentence is not None:
            yield sentence


def cautions(config: RunConfig, method: type[AdapterStrategy]) -> Iterator[str]:
    """What works but surprises."""
    if is_private(config) and not method.facts.private and method.name != "fedask":
        yield (
            f"Strategy {method.name!r} multiplies two noisy factors: the product carries B's noise times A, B times "
            "A's noise and the product of both noises, which grows with the square of the noise; ffa-lora, rolora, "
            "fedsvd and fed-sb are free of it."
        )
    if method.facts.personal and not config.evaluate.clients:
        hidden = is_private(config) or config.secagg.enabled
        way = "no figures of single clients may leave in this run" if hidden else "set evaluate.clients to true"
        yield (
            f"Strategy {method.name!r} keeps part of each adapter at its client, so evaluating the global one "
            f"understates it: {way}."
        )
    if method.name == "fed-sb" and config.lora.rank < 16:
        yield (
            f"Fed-SB trains only rank x rank values a layer, and lora.rank {config.lora.rank} is small for that: "
            "try 64 or more."
        )
    if config.strategy.ranks == "mixed" and method.name in ("fedit", "fedsa-lora"):
        yield (
            f"Strategy {method.name!r} with zero-padded ranks averages the factors apart, and ranks that few "
            "clients hold shrink: flexlora or fedask average the products."
        )
    if config.strategy.robust != "none" and config.federation.weights == "examples":
        yield "Robust rules count every client alike, since a corrupt one could claim any weight."
    if config.strategy.groups and config.strategy.robust != "none":
        rule, left = RULES[config.strategy.robust](config.strategy.corrupt), config.strategy.groups - 1
        if left < rule.least(rule.faults(left)):
            yield (
                f"{config.strategy.groups} groups are just enough for {rule.name}: a round that loses one of them ends "
                "the run until it is resumed; raise strategy.groups or lower strategy.corrupt."
            )
    if config.strategy.groups:
        yield "Whoever runs the coordinator chooses the groups: group sums protect against clients, not against it."
