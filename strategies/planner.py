"""From a run's configuration to the strategy that will run, or one sentence why it cannot."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from strategies.base import AdapterStrategy
from strategies.compression.compressed import Compressed
from strategies.compression.linear import HadamardSketch, SharedMask
from strategies.compression.quantize import StochasticQuantizer
from strategies.compression.quantized import Quantized
from strategies.fedbuff import FedBuff
from strategies.part_weighted import PartWeighted
from strategies.proximal import Proximal
from strategies.refusals import PADDABLE, cautions, expected_cohort, is_private, refusals
from strategies.registry import make_strategy
from strategies.robust.robust import RULES, Robust
from strategies.scaffold import Scaffold
from strategies.server_optimizer import ServerOptimized, ServerOptimizer
from strategies.zero_padded import ZeroPadded
from umbel.config import RunConfig
from umbel.errors import StrategyError

_WIDEST = 256


@lru_cache(maxsize=8)
def plan(config: RunConfig) -> AdapterStrategy:
    """The method of ``config.strategy`` with all that composes with it. Client and server both call this.

    Equal configurations give the same object: a strategy holds no state of a run.

    From the inside out: method, zero-padding for mixed ranks, server optimizer, regulariser, part weights,
    linear compression (or the memory of quantization), robust rule. Quantization (:func:`quantizer`) and the
    asynchronous buffer (:func:`buffer`) stand beside the strategy.

    Raises:
        StrategyError: the combination cannot work; the message is the first reason.
    """
    method = type(make_strategy(config.strategy.name))
    for sentence in refusals(config, method):
        raise StrategyError(sentence)
    chosen = config.strategy
    strategy = make_strategy(chosen.name, **_options(config))
    if chosen.ranks == "mixed" and chosen.name in PADDABLE:
        strategy = ZeroPadded(strategy, config.lora.rank)
    if chosen.server_optimizer != "none":
        strategy = ServerOptimized(
            strategy,
            ServerOptimizer(chosen.server_optimizer),
            learning_rate=chosen.server_learning_rate,
            beta1=chosen.server_momentum,
            tau=chosen.server_tau,
        )
    if chosen.regulariser == "fedprox":
        strategy = Proximal(strategy, chosen.proximal)
    elif chosen.regulariser == "scaffold":
        strategy = Scaffold(strategy, min(expected_cohort(config) / config.federation.clients, 1.0))
    if chosen.parts:
        strategy = PartWeighted(strategy)
    if chosen.compression.startswith(("sparsify", "sketch")):
        codec = SharedMask if chosen.compression.startswith("sparsify") else HadamardSketch
        strategy = Compressed(strategy, codec(chosen.density, config.run.seed), error_feedback=chosen.error_feedback)
    elif chosen.error_feedback:
        strategy = Quantized(strategy)
    if chosen.robust != "none":
        rule = RULES[chosen.robust](chosen.corrupt)
        rule.check(chosen.groups or expected_cohort(config))
        strategy = Robust(strategy, rule, chosen.groups)
    return strategy


def plan_warnings(config: RunConfig) -> tuple[str, ...]:
    """One sentence for each thing about the planned strategy that works but surprises.

    Raises:
        StrategyError: the method is unknown.
    """
    return tuple(cautions(config, type(make_strategy(config.strategy.name))))


def quantizer(config: RunConfig) -> StochasticQuantizer | None:
    """What encodes uploads to bytes on the plain path, or None."""
    chosen = config.strategy
    if not chosen.compression.endswith("quantize"):
        return None
    return StochasticQuantizer(chosen.bits, nearest=chosen.error_feedback)


def buffer(config: RunConfig, strategy: AdapterStrategy, version: int = 0) -> FedBuff | None:
    """The buffer of an asynchronous run, or None for synchronous rounds."""
    chosen = config.strategy
    return FedBuff(strategy, chosen.buffer, chosen.max_staleness, version) if chosen.buffer else None


def _options(config: RunConfig) -> dict[str, Any]:
    """The constructor options of the chosen method."""
    chosen, rank, seed = config.strategy, config.lora.rank, config.run.seed
    options: dict[str, dict[str, Any]] = {
        "fedex-lora": {"side_rank": chosen.side_rank},
        "flora": {"side_rank": chosen.side_rank, "seed": seed},
        "fed-sb": {"seed": seed},
        "flasc": {"density": chosen.density, "seed": seed},
        "feddpa": {"personal_rank": chosen.personal_rank},
    }
    if chosen.name == "fedask":
        frozen = is_private(config)
        full = 2 * rank if frozen else min((expected_cohort(config) + 1) * rank, _WIDEST)
        width = chosen.sketch or max(full, rank)
        options["fedask"] = {"sketch": width, "freeze_a": frozen, "seed": seed, "rank": rank}
    return options.get(chosen.name, {})
