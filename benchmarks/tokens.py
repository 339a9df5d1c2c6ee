"""Token reduction: FLOPs, seconds and accuracy of each method at 100, 50, 25 and 12% of the demo's image tokens.

python -m benchmarks.tokens --json
python -m benchmarks.tokens --methods fastv,withdraw --steps 20

For each cell the demo base gets the reduction, LoRA of rank 8 is trained on the pooled private images (no privacy: the
question is what the tokens are worth), and accuracy is that of the same private test questions. ``untuned`` is the base
with the reduction alone, on public test questions. Shares of ``fastv`` hold from its layer on; ``withdraw`` has no
share, so its layer is chosen to leave about that share of token-layers, at least one layer. ``tokens`` is the mean over
layers of image tokens that are computed. FLOPs are counted by torch for one forward pass, per example. Milliseconds are
the median of such passes, per example in a batch of 64; all cells take turns, so that a disturbance meets every one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.output import finish, in_turns, parser
from client.trainer import Trainer
from mllm.tasks.metrics import evaluate
from mllm.tokens import METHODS
from mllm.warm import warm_model, warm_task
from strategies.client_round import ClientRound
from strategies.fedit import FedIT
from umbel.config import RunConfig

SHARES = (0.5, 0.25, 0.12)
FASTV_LAYER = 1
TURNS = 31
_BATCH = 64


def config_of(method: str, share: float, layers: int, steps: int) -> RunConfig:
    """The options of one cell."""
    layer = FASTV_LAYER if method == "fastv" else max(1, round(share * layers))
    flat: dict[str, Any] = {
        "run.id": "tokens", "privacy.unit": "none", "secagg.enabled": False, "strategy.name": "fedit",
        "model.quantization": "none", "model.tokens": method, "model.token-share": share, "model.token-layer": layer,
        "train.learning-rate": 3e-3, "train.schedule": "constant", "train.batch-size": 32, "train.amount": steps,
    }  # fmt: skip
    return RunConfig.from_flat(flat)


def cell(method: str, share: float, steps: int, questions: int) -> tuple[dict[str, Any], Callable[[], None]]:
    """Measures one method at one share; and one forward pass of its tuned model, still to be timed."""
    config = config_of(method, share, 4, steps)
    warm, task = warm_model(config), warm_task(config)
    warm.tuned.load(warm.initial)
    model = warm.tuned.model
    batch = warm.collator([task.evaluation["public"][i] for i in range(_BATCH)])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch.inputs, use_cache=False)

    def forward() -> None:
        with torch.no_grad():
            model(**batch.inputs, use_cache=False)

    untuned = evaluate(model, warm.collator, task.evaluation["public"], batch_size=_BATCH, limit=questions)
    Trainer(warm.tuned, warm.collator, config.train).train(
        task.train, ClientRound(FedIT(), warm.tuned.spec, warm.initial, 1), seed=0
    )
    tuned = evaluate(model, warm.collator, task.evaluation["private"], batch_size=_BATCH, limit=questions)
    row = {
        "method": method,
        "share": share,
        "tokens": round(_mean_tokens(config), 2),
        "mflops": round(counter.get_total_flops() / _BATCH / 1e6, 2),
        "untuned_public": round(untuned.accuracy, 4),
        "tuned_private": round(tuned.accuracy, 4),
    }
    return row, forward


def _mean_tokens(config: RunConfig, tokens: int = 16, layers: int = 4) -> float:
    model = config.model
    if model.tokens == "none":
        return tokens
    if model.tokens in ("fastv", "withdraw"):
        rest = math.ceil(tokens * model.token_share) if model.tokens == "fastv" else 0
        return (tokens * model.token_layer + rest * (layers - model.token_layer)) / layers
    return max(1, math.ceil(tokens * model.token_share))


def main() -> None:
    """Runs all cells."""
    options = parser("Accuracy against speed of each way to make fewer image tokens.")
    options.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    options.add_argument("--steps", type=int, default=60, help="of LoRA tuning in each cell")
    options.add_argument("--questions", type=int, default=600, help="test questions of each accuracy")
    arguments = options.parse_args()
    chosen = [name for name in arguments.methods.split(",") if name]
    unknown = sorted(set(chosen) - set(METHODS))
    if unknown:
        options.error(f"method {unknown[0]!r} is unknown: choose from {', '.join(METHODS)}")
    cells = [("none", 1.0), *((method, share) for method in chosen for share in SHARES)]
    rows, passes = [], []
    for method, share in cells:
        row, forward = cell(method, share, arguments.steps, arguments.questions)
        rows.append(row)
        passes.append(forward)
        print(row, file=sys.stderr, flush=True)
    in_turns(passes, 1)  # warms up
    for row, seconds in zip(rows, in_turns(passes, TURNS), strict=True):
        row["milliseconds"] = round(1000 * seconds / _BATCH, 3)
    finish({"steps": arguments.steps, "questions": arguments.questions, "cells": rows}, as_json=arguments.json)


if __name__ == "__main__":
    main()
