"""Server-side evaluation of the global adapter, on the task's own evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mllm.tasks.base import Task
from mllm.tasks.metrics import evaluate
from mllm.warm import WarmModel
from umbel.adapter import Vector
from umbel.config import EvaluateConfig
from umbel.side import SideTerm

Side = Mapping[str, SideTerm]


class Evaluator:
    """Evaluates adapters, with their side terms where a method keeps some, on the coordinator's copy of the model.

    Args:
        warm: the loaded base with adapter modules.
        task: whose evaluation sets are used; a coordinator holds public or consented data only.
        config: batch size and how many examples during the rounds.
    """

    def __init__(self, warm: WarmModel, task: Task, config: EvaluateConfig) -> None:
        self._warm = warm
        self._task = task
        self._config = config

    def headline(self, adapter: Vector, side: Side | None = None) -> dict[str, dict[str, Any]]:
        """The task's main set alone, at most ``evaluate.limit`` examples: what a round reports."""
        return {self._task.headline: self._measure(adapter, side, self._task.headline, self._config.limit)}

    def everything(self, adapter: Vector, side: Side | None = None) -> dict[str, dict[str, Any]]:
        """The main set up to ``evaluate.main``, the others up to ``evaluate.others``: what beginning and end report."""
        main, others = self._config.main, self._config.others
        limits = {name: main if name == self._task.headline else others for name in self._task.evaluation}
        return {name: self._measure(adapter, side, name, limit) for name, limit in limits.items()}

    def _measure(self, adapter: Vector, side: Side | None, name: str, limit: int) -> dict[str, Any]:
        self._warm.tuned.load(adapter, side)
        found = evaluate(
            self._warm.tuned.model,
            self._warm.collator,
            self._task.evaluation[name],
            batch_size=self._config.batch_size,
            limit=limit,
        )
        return asdict(found)
