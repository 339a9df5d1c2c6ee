"""What a process loads once and every simulated device in it shares: base, adapter modules, task."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umbel.adapter import Vector
from umbel.config import RunConfig

if TYPE_CHECKING:
    from mllm.load import Base
    from mllm.lora import TunedModel
    from mllm.tasks.base import Task
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


def warm_model(config: RunConfig) -> WarmModel:
    """The base and adapter modules of ``config``, loaded at most once a process.

    Another model, quantization or LoRA shape replaces the one held: a process holds one base.

    Raises:
        ModelError: the model cannot be loaded, quantized or adapted.
    """
    global _model  # one warm model per process is the point of this module
    key = (config.model, config.lora, config.run.seed)
    with _lock:
        if _model is None or _model[0] != key:
            from mllm.load import load_base
            from mllm.lora import attach_lora
            from mllm.tasks.collate import Collator

            _model = None  # frees the old base before the new one is loaded
            base = load_base(config.model.name, config.model.quantization)
            tuned = attach_lora(base, config.lora, seed=config.run.seed)
            if config.model.gradient_checkpointing:
                tuned.enable_gradient_checkpointing()
            _model = (key, WarmModel(base, tuned, Collator(base.processor), tuned.vector()))
        return _model[1]


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
