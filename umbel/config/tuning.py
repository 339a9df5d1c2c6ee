"""Which ways of tuning, distilling, pruning and caching cannot be combined; one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel.config.run_config import RunConfig

_WITH_PAIRS = ("fedit", "ffa-lora", "rolora")
_LOOPED = ("ia3", "prompt", "prefix")


def impossible(config: RunConfig) -> Iterator[str]:
    """Every reason why these options cannot work together, without the full stop."""
    yield from _method(config)
    yield from _distillation(config)
    yield from _base(config)


def _method(config: RunConfig) -> Iterator[str]:
    lora, strategy, privacy = config.lora, config.strategy, config.privacy
    method = lora.method
    if method == "lora":
        return
    if strategy.ranks != "same":
        yield f"clients of mixed ranks train LoRA factors, but lora.method is {method}: set strategy.ranks to same"
    if method == "dora":
        if privacy.unit == "example":
            yield (
                "lora.method dora normalises by a norm of all factors together, whose per-example gradient no fast "
                "engine knows: set lora.method to lora, or privacy.unit to client or none"
            )
        if strategy.name not in _WITH_PAIRS:
            yield (
                f"strategy.name {strategy.name} works on the products B A, which DoRA scales by column norms of its "
                f"own: choose one of {', '.join(_WITH_PAIRS)}"
            )
        return
    if strategy.name != "fedit":
        yield (
            f"lora.method {method} has no factors A and B for strategy {strategy.name} to treat apart, only values to "
            "average: set strategy.name to fedit"
        )
    if method in _LOOPED and privacy.unit == "example" and privacy.engine not in ("auto", "loop"):
        yield (
            f"lora.method {method} trains values outside any layer, which engine {privacy.engine} cannot clip: set "
            "privacy.engine to auto, which then takes the loop"
        )
    if method != "adapter" and lora.quantization_aware != "none":
        yield f"lora.quantization-aware rounds factors, which lora.method {method} has not: set it to none"
    if lora.dropout:
        yield f"lora.dropout belongs to LoRA and DoRA, but lora.method is {method}: set it to 0"
    if method in ("prompt", "prefix"):
        if lora.targets != "language" or lora.modules != "auto":
            yield (
                f"lora.method {method} puts soft tokens before the language model and has no target layers: leave "
                "lora.targets at language and lora.modules at auto"
            )
        if config.model.tokens in ("fastv", "withdraw"):
            yield (
                f"lora.method {method} moves every position, which model.tokens {config.model.tokens} counts on: use "
                "pool, tome or prumerge"
            )
    if method == "prefix" and config.model.gradient_checkpointing:
        yield "gradient checkpointing would add the prefix twice: set model.gradient-checkpointing to false"


def _distillation(config: RunConfig) -> Iterator[str]:
    train = config.train
    if (train.distill == "teacher") != (train.teacher != "none"):
        yield (
            f"train.distill is {train.distill} but train.teacher is {train.teacher}: name a teacher for "
            "train.distill=teacher, and none otherwise"
        )
    if config.federation.lanes > 1:
        if train.distill != "none":
            yield "lanes train many clients in one pass without distillation: set federation.lanes to 1"
        if config.lora.quantization_aware != "none":
            yield "lanes hold factors that nobody rounds: set federation.lanes to 1 or lora.quantization-aware to none"
        if config.model.tokens in ("fastv", "withdraw"):
            yield (
                f"model.tokens {config.model.tokens} shortens rows inside the model, where lanes cannot follow: set "
                "federation.lanes to 1"
            )


def _base(config: RunConfig) -> Iterator[str]:
    model = config.model
    if (model.prune == "none") != (model.prune_share == 0):
        yield (
            f"model.prune is {model.prune} but model.prune-share is {model.prune_share}: set both, or leave them at "
            "none and 0"
        )
    if model.calibration != "none":
        if model.quantization not in ("auto", "nf4", "nf4-double") and "nf4" not in model.quantization_parts:
            yield "model.calibration clips 4-bit weights, but none are stored so: set model.quantization to nf4"
        if config.task.name != "easy-vqa":
            yield (
                f"model.calibration needs public examples, which task {config.task.name} has not (a base that saw "
                "private ones would leak them): set it to none"
            )
    targets = {part.strip() for part in config.lora.targets.split(",")}
    if model.feature_cache != "none" and "vision" in targets:
        yield "features of a tower that is trained cannot be cached: set model.feature-cache to none"
