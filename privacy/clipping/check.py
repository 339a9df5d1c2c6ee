"""Comparing an engine with the loop on a real batch: the start-up check of engines that can be silently wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privacy.clipping.engine import Clipped, Forward, GradientEngine, Split
from umbel.errors import PrivacyError
from umbel.rows import RowMap

TOLERANCE = 1e-4
"""Relative; float32 noise of real models stays below 1e-5, every known miscount is above 1e-2."""


def relative_error(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """|got - expected| / |expected| over all tensors together, in float64; 0 when both are zero, NaN-safe (inf)."""
    error = sum(float((got[name].double() - value.double()).square().sum()) for name, value in expected.items())
    whole = sum(float(value.double().square().sum()) for value in expected.values())
    if whole == 0:
        return 0.0 if error == 0 else float("inf")
    ratio = (error / whole) ** 0.5
    return ratio if ratio == ratio else float("inf")


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switches dropout off inside the block, so that two passes over an example agree."""
    kinds = (nn.modules.dropout._DropoutNd,)
    active = [module for module in model.modules() if isinstance(module, kinds) and module.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True


def compare(
    engine: GradientEngine,
    oracle: GradientEngine,
    forward: Forward,
    batch: Any,
    rows: RowMap | None,
    size: int,
    split: Split,
) -> tuple[float, Clipped]:
    """The engine's clipped sum against the oracle's on one microbatch, without dropout; both engines must be empty.

    Returns:
        The larger of the relative errors of the clipped sum and of the per-example norms, and the oracle's record.
    """
    with without_dropout(engine.model):
        got = engine.accumulate(forward, batch, rows, size, split)
        expected = oracle.accumulate(forward, batch, rows, size, split)
    error = relative_error(engine.take(), oracle.take())
    return max(error, relative_error({"norms": got.norms.cpu()}, {"norms": expected.norms.cpu()})), expected


def require_agreement(
    engine: GradientEngine,
    oracle: GradientEngine,
    forward: Forward,
    batch: Any,
    rows: RowMap | None,
    size: int,
    split: Split,
    label: str,
) -> None:
    """Refuses an engine that does not equal the loop on this batch.

    Raises:
        PrivacyError: the relative error is above :data:`TOLERANCE`, or the engine fails on the model.
    """
    try:
        error, _ = compare(engine, oracle, forward, batch, rows, size, split)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError, KeyError) as failure:
        engine.take()
        torch.clear_autocast_cache()
        raise PrivacyError(
            f"The {label} engine fails on this model ({type(failure).__name__}): use the book-keeping or loop engine."
        ) from None
    if error > TOLERANCE:
        raise PrivacyError(
            f"The {label} engine is off by {error:.1%} from the loop on this model, above {TOLERANCE:.2%}: "
            "use the book-keeping or loop engine."
        )
