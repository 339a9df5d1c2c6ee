"""The cost model of the model at hand: what one training step takes here."""

from __future__ import annotations

import statistics
import time

from client.trainer import Trainer
from mllm.warm import warm_model, warm_task
from strategies.client_round import ClientRound
from strategies.fedit import FedIT
from umbel.config import RunConfig

_REPEATS = 3


def measured_step(config: RunConfig) -> float:
    """Seconds of one local step of this run on this machine, by ``train.threads`` threads, to two digits.

    The median of three steps of plain LoRA on the first device's examples, after one to warm up. The model is left
    with whatever factors came out.
    """
    warm = warm_model(config)
    examples = warm_task(config).client(0, config.federation.clients, config.run.seed)
    client = ClientRound(FedIT(), warm.tuned.spec, warm.initial, 1)
    trainer = Trainer(warm.tuned, warm.collator, config.train)
    times = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        trainer.train(examples, client, seed=0, amount=1)
        times.append(time.perf_counter() - started)
    return float(f"{statistics.median(times[1:]):.2g}")
