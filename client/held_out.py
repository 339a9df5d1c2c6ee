"""The examples that a site does not train on, to evaluate with."""

from __future__ import annotations

import numpy as np

from mllm.tasks.base import ExampleSet
from mllm.tasks.partition import group_by_image


def hold_out(examples: ExampleSet, share: float, seed: int) -> tuple[ExampleSet, ExampleSet]:
    """Splits a site's examples into those to train on and those to evaluate with.

    Examples that share an image stay together, so that no evaluated image was trained on. Groups are shuffled by
    ``seed`` and held out until at least ``share`` of the examples is, but one group always remains for training; with
    a single group nothing is held out. The same arguments give the same split.

    Args:
        examples: of one site.
        share: to hold out, in (0, 1).
        seed: any integer of at least 0.

    Returns:
        Training and held-out examples, each in their former order.
    """
    groups = group_by_image([[str(source.path) for source in example.images] for example in examples])
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, dtype=np.int64)
    held = np.zeros(len(sizes), dtype=bool)
    wanted, got = share * len(groups), 0
    for group in np.random.default_rng(seed).permutation(len(sizes))[: max(len(sizes) - 1, 0)]:
        if got >= wanted:
            break
        held[group] = True
        got += int(sizes[group])
    chosen = held[groups] if len(groups) else np.zeros(0, dtype=bool)
    return examples.subset(np.flatnonzero(~chosen).tolist()), examples.subset(np.flatnonzero(chosen).tolist())
