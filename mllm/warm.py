"""What a process loads once and every simulated device in it shares: base, adapter modules, task."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.config.model import ModelConfig, quantization_of_parts
from umbel.errors import ModelError

if TYPE_CHECKING:
    from mllm.load import Base
    from mllm.lora import TunedModel
    from mllm.tasks.base import ExampleSet, Task
    from mllm.tasks.collate import Collator


@dataclass(frozen=True, slots=True)
class WarmModel:
    """A loaded base with adapter modules attached, ready for any adapter vector.

    ``initial`` is the adapter as it was attached; the modules themselves hold whatever was loaded last.
    """

    base: Base
    tuned: TunedModel
    collator: Collator
    initial: Vector


_lock = threading.Lock()
_model: tuple[object, WarmModel] | None = None
_task: tuple[object, Task] | None = None
_teacher: tuple[object, tuple[Any, Collator]] | None = None


def warm_model(config: RunConfig) -> WarmModel:
    """The base and adapter modules of ``config``, loaded at most once a process.

    Another model, quantization or LoRA shape replaces the one held: a process holds one base.

    Raises:
        ModelError: the model cannot be loaded, quantized or adapted.
    """
    global _model  # one warm model per process is the point of this module
    key = (config.model, config.lora, config.run.seed, config.train.teacher)
    public = warm_task(config).pretrain if config.model.calibration != "none" else None
    with _lock:
        if _model is None or _model[0] != key:
            from mllm.tasks.collate import Collator
            from mllm.tune import attach

            _model = None  # frees the old base before the new one is loaded
            base = load_as(config.model, public)
            tuned = attach(base, config.lora, seed=config.run.seed)
            if config.model.gradient_checkpointing:
                tuned.enable_gradient_checkpointing()
            collator = Collator(base.processor)
            if config.train.teacher != "none":
                collator.teacher = partial(
                    warm_teacher, config
                )  # loaded where somebody trains, not where one evaluates
            _model = (key, WarmModel(base, tuned, collator, tuned.vector()))
        return _model[1]


def load_configured(config: RunConfig) -> Base:
    """A base of its own as ``config.model`` says, without an adapter; nothing is kept for others.

    Raises:
        ModelError: as :func:`warm_model`.
        DataError: a calibration's public data cannot be read.
    """
    return load_as(config.model, warm_task(config).pretrain if config.model.calibration != "none" else None)


def load_as(config: ModelConfig, public: ExampleSet | None) -> Base:
    """The base as ``model.*`` says: pruned, calibrated, quantized, with fewer tokens and with cached features.

    Args:
        config: the options.
        public: public examples for a calibration.

    Raises:
        ModelError: as :func:`mllm.load.load_base`.
    """
    from mllm.features import attach_feature_cache, feature_store, tower_hash
    from mllm.load import load_base
    from mllm.prepare import preparation
    from mllm.tokens import TokenPlan, attach_tokens

    base = load_base(
        config.reference,
        config.quantization,
        parts=quantization_of_parts(config.quantization_parts),
        prepare=preparation(config, lambda: public),
    )
    if config.tokens != "none":
        attach_tokens(base.model, base.processor, TokenPlan(config.tokens, config.token_share, config.token_layer))
    if config.feature_cache != "none":
        report = base.report
        how = (config.prune, config.prune_share, config.calibration, config.calibration_examples)
        vision = sorted((m.path, m.backend) for m in report.modules if m.part == "vision")
        tower = tower_hash(base.hash, report.compute, vision, *how)
        attach_feature_cache(base.model, feature_store(config.feature_cache, tower, config.feature_cache_mb))
    return base


def warm_teacher(config: RunConfig) -> tuple[Any, Collator]:
    """The model of ``train.teacher`` and its collator, loaded at most once a process and stored as the base is.

    Raises:
        ModelError: the teacher cannot be loaded, or has another tokenizer or vocabulary than the base.
    """
    global _teacher
    warm = warm_model(config)
    key = (config.train.teacher, config.model)
    with _lock:
        if _teacher is None or _teacher[0] != key:
            from mllm.load import load_base
            from mllm.tasks.collate import Collator

            base = load_base(config.train.teacher, config.model.quantization)
            collator = Collator(base.processor)
            # Once a load: sites ask for their teacher in every round, and a vocabulary has a hundred thousand words.
            _require_same_words(config, warm, base.model, collator)
            _teacher = (key, (base.model, collator))
        return _teacher[1]


def _require_same_words(config: RunConfig, warm: WarmModel, model: Any, collator: Collator) -> None:
    if collator.tokenizer.get_vocab() != warm.collator.tokenizer.get_vocab():
        raise ModelError(
            f"Teacher {config.train.teacher} has another tokenizer than {config.model.name}, so it says nothing about "
            "the same tokens: choose a teacher of the same family."
        )
    own, other = (_vocabulary(found) for found in (warm.base.model, model))
    if own != other:
        raise ModelError(
            f"Teacher {config.train.teacher} gives {other} logits a token and {config.model.name} {own}: choose a "
            "teacher with the same vocabulary."
        )


def _vocabulary(model: Any) -> int | None:
    """Logits a token; None where the model does not show its output layer."""
    layer = model.get_output_embeddings()
    return getattr(layer, "out_features", None)


def warm_task(config: RunConfig) -> Task:
    """The task of ``config``, opened at most once a process.

    Raises:
        DataError: the data cannot be read.
    """
    global _task
    with _lock:
        if _task is None or _task[0] != config.task:
            from mllm.tasks.load import load_task

            _task = (config.task, load_task(config.task))
        return _task[1]
